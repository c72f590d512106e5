"""What the Relax blocks can build, judged from a spec without importing TVM."""

from __future__ import annotations

from export.specs import ModelSpec, PositionKind, ResamplerSpec, VisionSpec


UNSOUND_HEAD = 16
"""TVM's prefill attention gives wrong numbers for this head size on OpenCL (measured on PoCL, 0.27.0.post1)."""


def unsupported(spec: ModelSpec, device: bool) -> list[str]:
    """Why a model has no MLC library, one reason each; empty when it has one.

    Args:
        device: the library is for a phone's GPU, not only for a CPU.
    """
    reasons = []
    if not isinstance(spec.vision, VisionSpec):
        reasons.append(f"a vision encoder of kind {type(spec.vision).__name__}")
    elif spec.vision.positions is PositionKind.INDEXED:
        reasons.append("vision positions by index")
    if not isinstance(spec.connector, ResamplerSpec):
        reasons.append(f"a connector of kind {type(spec.connector).__name__}")
    if spec.decoder.adapter is not None:
        reasons.append(f"a decoder with {type(spec.decoder.adapter).__name__}")
    if spec.decoder.rope.sections or spec.decoder.rope.stored:
        reasons.append("rotary positions on several axes or with stored frequencies")
    if spec.decoder.rope.dim != spec.decoder.head_dim:
        reasons.append("rotary positions on part of a head")
    if device and spec.decoder.head_dim == UNSOUND_HEAD:
        reasons.append(f"attention heads of {UNSOUND_HEAD} channels, which TVM 0.27 computes wrongly on OpenCL")
    return reasons
