"""An NVIDIA desktop GPU, through TensorRT engines, with ONNX graphs for onnxruntime-gpu beside them."""

from __future__ import annotations

from runtime_py.backends.records import ONNX, TENSORRT
from targets.base import Limits, Target

TARGET = Target(
    name="desktop-gpu",
    title="NVIDIA RTX GPU (compute capability 8.0 or later), through TensorRT",
    backends=(TENSORRT, ONNX),
    precisions=("int4", "fp16"),
    limits=Limits(context=4096, prefill_chunk=1024),
    contains=(
        "tensorrt/: one engine for each of vision_encoder, connector, embed_tokens and decoder",
        "onnx/: the same four stages as graphs, for the CUDA and TensorRT providers of onnxruntime-gpu",
        "manifest.json, tokenizer and configuration files, a self-test sample",
    ),
    needs=(
        "an NVIDIA driver, and the TensorRT flavour and version that manifest.json names",
        "or onnxruntime-gpu for the graphs under onnx/ (`pip install edgeproof[gpu]`)",
    ),
)
