"""What each layer becomes in an engine, and why, from names, roles and shapes alone."""

from __future__ import annotations

from export.backends.base import BuildOptions
from export.backends.tensorrt.record import BLOCK_SIZES
from export.quantisation.block_length import length_for
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.errors import UsageError

PRECISIONS = ("fp32", "fp16", "int4")
QUANTISED_ROLES = ("decoder", "head")


def assign(layer: LayerShape, options: BuildOptions) -> Assignment:
    """The storage of one layer.

    TensorRT takes int4 blocks only where they divide the input width exactly. A padded copy of the weights would need a
    padded copy of the activations at every call; such a layer stays in float16 instead.

    Raises:
        UsageError: a precision or block size that no engine has.
    """
    asked = options.extra.get("block_size", BLOCK_SIZES[0])
    block = length_for(layer.columns, asked, BLOCK_SIZES)
    if options.precision not in PRECISIONS or block not in BLOCK_SIZES:
        raise UsageError(
            f"precision {options.precision} with blocks of {block} for TensorRT",
            f"one of {', '.join(PRECISIONS)}; blocks of {', '.join(map(str, BLOCK_SIZES))}",
            "choose one of these",
        )
    if options.precision != "int4":
        return Assignment(layer, Storage(options.precision), reason=f"every layer is {options.precision}")
    if layer.role not in QUANTISED_ROLES:
        return Assignment(layer, Storage.FP16, reason=f"{layer.role} layers stay in fp16")
    if layer.columns % block:
        reason = f"{layer.columns} columns are no multiple of {block}"
        return Assignment(layer, Storage.FP16, reason=reason, undivided=True)
    return Assignment(layer, Storage.INT4, f"trt_int4_b{block}", f"blocks of {block}")


def float_dtype(options: BuildOptions) -> str:
    """NumPy name of the dtype that engines compute in and keep their cache in."""
    return "float32" if options.precision == "fp32" else "float16"
