"""ONNX Runtime's WebGPU provider against its processor kernels, graph by graph: see docs/targets/webgpu.md."""
