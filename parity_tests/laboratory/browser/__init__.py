"""Packages in a browser's WebGPU: transformers.js and onnxruntime-web in a headless Chromium, see docs/results/webgpu.md."""
