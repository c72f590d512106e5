"""Android phones, through the MLC engine on OpenCL."""

from __future__ import annotations

from runtime_py.backends.records import MLC
from targets.base import Limits, Target

MLC_PRECISIONS = ("int4", "fp16", "fp32", "q4f32_1")
"""``int4`` is MLC's q4f16_1, what phones use; ``q4f32_1`` keeps int4 weights and computes in float32."""

MLC_ALIASES = {"q4f16_1": "int4", "q0f16": "fp16", "q0f32": "fp32"}
"""MLC's own names."""

TARGET = Target(
    name="android",
    title="arm64 Android phone with an OpenCL GPU, through the MLC engine",
    backends=(MLC,),
    precisions=MLC_PRECISIONS,
    limits=Limits(context=2048, prefill_chunk=512),
    contains=(
        "mlc/<model id>/: weight shards, tensor-cache.json, mlc-chat-config.json, tokenizer.json",
        "mlc/lib/<library>-android.tar: the model library for OpenCL, vision tower and connector inside",
        "mlc/host/<library>-<processor>.so: the same module for checking on this machine (x86_64 or aarch64)",
        "mlc/host/<library>-x86-64-vnni.so: its int4 products for processors with AVX-512 VNNI; int4 exports on x86-64",
        "mlc/mlc-app-config.json and mlc-package-config.json for the Android app",
    ),
    needs=("the MLC Android app or mlc4j, built from the revision of mlc-llm that docs/targets/android.md names",),
    precision_aliases=MLC_ALIASES,
    phone=True,
)
