"""What TensorRT cannot hold of a model, judged from its spec before anything is built."""

from __future__ import annotations

from export.backends.base import BuildOptions
from export.backends.tensorrt.profiles import check_profiles
from export.specs import ModelSpec
from runtime_py.errors import UnsupportedModelError

HEAD_STEP = 8
"""In half precision the compiler of tensorrt-rtx 1.7.1 fails on a decoder whose heads are 12 or 20 wide,
with "op->input_layouts().size() > idx"; 8, 16, 24, 32, 40, 64 and 128 build (measured)."""


def unsupported(spec: ModelSpec, options: BuildOptions) -> list[str]:
    """Why a model has no engines, one reason each, stage first; empty when it has them."""
    reasons = []
    width = spec.decoder.head_dim
    if options.precision != "fp32" and width % HEAD_STEP:
        reasons.append(f"decoder: attention heads of {width} channels, no multiple of {HEAD_STEP}, in {options.precision}")
    try:
        check_profiles(spec, options.limits, options.precision == "int4")
    except UnsupportedModelError as error:
        reasons.append(error.what)
    return reasons
