"""Any desktop or server processor, through ONNX Runtime."""

from __future__ import annotations

from runtime_py.backends.records import ONNX
from targets.base import Limits, Target

TARGET = Target(
    name="cpu",
    title="x86-64 or arm64 processor, through ONNX Runtime",
    backends=(ONNX,),
    precisions=("int4", "fp16", "fp32"),
    limits=Limits(context=4096, prefill_chunk=512),
    contains=(
        "onnx/: vision_encoder, connector, embed_tokens and decoder_model_merged graphs with their external data",
        "manifest.json, tokenizer and configuration files, a self-test sample",
    ),
    needs=("onnxruntime 1.23 or later (`pip install edgeproof[onnx]`); no PyTorch",),
)
