"""iPhones, through the MLC engine on Metal."""

from __future__ import annotations

from runtime_py.backends.records import MLC
from targets.android import MLC_ALIASES, MLC_PRECISIONS
from targets.base import Limits, Target

TARGET = Target(
    name="ios",
    title="iPhone or iPad, through the MLC engine on Metal",
    backends=(MLC,),
    precisions=MLC_PRECISIONS,
    limits=Limits(context=2048, prefill_chunk=512),
    contains=(
        "mlc/<model id>/: weight shards, tensor-cache.json, mlc-chat-config.json, tokenizer.json",
        "mlc/lib/<library>-ios.tar: the model library for Metal, vision tower and connector inside",
        "mlc/host/<library>-<processor>.so: the same module for checking on this machine (x86_64 or aarch64)",
        "mlc/host/<library>-x86-64-vnni.so: its int4 products for processors with AVX-512 VNNI; int4 exports on x86-64",
        "mlc/mlc-app-config.json and mlc-package-config.json for the iOS app",
    ),
    needs=(
        "the MLC iOS app, built from the revision of mlc-llm that docs/targets/ios.md names",
        "the entitlement com.apple.developer.kernel.increased-memory-limit for the device limits given here",
    ),
    precision_aliases=MLC_ALIASES,
    phone=True,
)
