"""What TensorRT cannot hold of a model, judged from its spec before anything is built."""

from __future__ import annotations

import math

import numpy as np

from export.backends.base import BuildOptions
from export.backends.tensorrt.profiles import check_profiles
from export.backends.tensorrt.storages import float_dtype
from export.specs import ModelSpec
from runtime_py.backends.trt_rows import ALIGNED
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
    limits, item = options.limits, np.dtype(float_dtype(options)).itemsize
    position = spec.decoder.kv_heads * width * item
    if limits.batch > 1 and limits.context * position % ALIGNED:
        step = ALIGNED // math.gcd(ALIGNED, position)
        reasons.append(
            f"decoder: a cache of {limits.context} positions for each of several sequences, whose addresses are to be "
            f"multiples of {ALIGNED} bytes (a --context that is a multiple of {step} gives them)"
        )
    try:
        check_profiles(spec, options.limits, options.precision == "int4")
    except UnsupportedModelError as error:
        reasons.append(error.what)
    return reasons
