"""What a user may choose about ONNX packages, checked and with defaults, and what each layer becomes under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.backends.base import BuildOptions
from export.backends.onnx.record import BACKEND, BLOCK_SIZES, TOKEN_GRID
from export.quantisation.block_length import length_for
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.backends import records
from runtime_py.errors import UsageError

ALLOWED: dict[str, tuple[Any, ...]] = {
    **{option.name: option.values for option in BACKEND.options},
    "accuracy_level": (0, 4),
    "cache": ("float16", "float32"),
}
"""Option name to accepted values, those without a flag among them; docs/targets/cpu.md says what each costs."""

PRECISIONS = ("fp32", "fp16", "int4")


@dataclass(frozen=True)
class OnnxChoices:
    """Resolved options.

    Attributes:
        vision_precision: ``int8`` rounds activations too, a scale a token; ``int8_weights`` keeps them float32.
        accuracy_level: of int4 layers; 4 rounds their input to int8 per block, 0 keeps it.
        head_precision: of the language head in int4 packages.
        block_size: columns that share an int4 scale; ``auto`` chooses layer by layer.
        symmetric: int4 blocks share the constant zero point 8; else each stores its own.
        cache: dtype of the key/value cache.
    """

    precision: str
    vision_precision: str
    embed_precision: str
    head_precision: str = "int4"
    block_size: int | str = 32
    accuracy_level: int = 4
    symmetric: bool = True
    cache: str = "float32"


def choices(options: BuildOptions, routed: bool = False) -> OnnxChoices:
    """The user's options over the defaults of the precision.

    Args:
        routed: expert gates read the token embedding (Awaker), so that its rounding can change which expert is chosen; its
            default is float16 then.

    Raises:
        UsageError: an unknown precision, or a value an option does not take.
    """
    if options.precision not in PRECISIONS:
        raise UsageError(f"precision {options.precision} for ONNX", ", ".join(PRECISIONS), "choose one of these")
    for name, allowed in ALLOWED.items():
        if name in options.extra and options.extra[name] not in allowed:
            raise UsageError(
                f"option {name}={options.extra[name]}", "one of " + ", ".join(map(str, allowed)), "choose one of these"
            )
    plain = options.precision if options.precision != "int4" else None
    # CUDA has no product of bytes with a scale a row: such layers would go back to the processor
    eight_bits = "int8" if options.target.runs is records.ONNX else "int8_weights"
    defaults: Mapping[str, Any] = {
        "vision_precision": plain or eight_bits,
        "embed_precision": plain or ("fp16" if routed else "int8"),
        "cache": "float32" if options.precision == "fp32" else "float16",
    }
    return OnnxChoices(options.precision, **{**defaults, **{k: options.extra[k] for k in ALLOWED if k in options.extra}})


def assign(layer: LayerShape, chosen: OnnxChoices) -> Assignment:
    """What one layer becomes, and why."""
    by_role = {"vision": chosen.vision_precision, "embedding": chosen.embed_precision}
    if chosen.precision == "int4":
        by_role["head"] = chosen.head_precision
    asked = by_role.get(layer.role, chosen.precision)
    if asked in {"fp32", "fp16"}:
        return Assignment(layer, Storage(asked), reason=f"{layer.role} layers are stored in {asked}")
    if layer.role == "vision":
        return _vision(layer, asked)
    if layer.role == "embedding":
        return _embedding(layer, asked)
    if layer.role == "connector":
        return Assignment(layer, Storage.FP16, reason="connector layers are small and stay in fp16")
    if layer.role == "adapter":
        return Assignment(layer, Storage.INT8, "ort_int8_b32", "adapters keep eight bits" + _tail(layer.columns, 32))
    block = length_for(layer.columns, chosen.block_size, BLOCK_SIZES)
    four = f"ort_int4_b{block}" if chosen.symmetric else f"ort_int4_asym_b{block}"
    grid = f"ort_int8_b{block}" if asked == "int8" else four
    return Assignment(layer, Storage(asked), grid, f"blocks of {block}" + _tail(layer.columns, block))


def _vision(layer: LayerShape, asked: str) -> Assignment:
    if asked == "int8":
        reason = f"one scale a row and one a token, so that {layer.columns} columns need be no multiple of a block"
        return Assignment(layer, Storage.INT8, TOKEN_GRID, reason)
    return Assignment(layer, Storage.INT8, "ort_int8_b32", "blocks of 32" + _tail(layer.columns, 32))


def _embedding(layer: LayerShape, asked: str) -> Assignment:
    if layer.columns % 32:
        return Assignment(layer, Storage.FP16, reason=f"{layer.columns} columns are no multiple of 32")
    return Assignment(
        layer, Storage(asked), f"ort_gather_{asked}_b32", "blocks of 32, rows dequantised as they are looked up"
    )


def _tail(columns: int, block: int) -> str:
    """What happens to columns that do not fill a block."""
    rest = columns % block
    if not rest:
        return ""
    return f"; {columns} columns are no multiple, the last block holds {rest} and is padded with its zero point"
