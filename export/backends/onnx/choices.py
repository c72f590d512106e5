"""What a user may choose about ONNX packages, checked and with defaults, and what each layer becomes under them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from export.backends.base import BuildOptions
from export.backends.onnx.record import BACKEND, BLOCK_SIZES, FINE_GRID, PRESETS, TOKEN_GRID
from export.quantisation.block_length import AUTO, length_for
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.backends import records
from runtime_py.backends.records import INT8_CACHE
from runtime_py.contracts import DECODER, EMBED, VISION
from runtime_py.errors import UsageError

ALLOWED: dict[str, tuple[Any, ...]] = {
    **{option.name: option.values for option in BACKEND.options},
    "accuracy_level": (0, 4),
}
"""Option name to accepted values, those without a flag among them; docs/targets/cpu.md says what each costs."""

PRECISIONS = ("fp32", "fp16", "int4")

PLAIN = PRESETS[0]
COMPACT = "compact"
"""The preset of the longest blocks that divide: 4.1 bits a weight instead of 4.5. Calibrated, its codes are nearer to full
precision than rounded ones in blocks of 32 (docs/results/calibration.md)."""
EIGHT_BITS: Mapping[str, frozenset[str]] = {PLAIN: frozenset(), COMPACT: frozenset(), "mixed": frozenset({"down"})}
"""Preset to the decoder's layers, by a part of their names, that keep eight bits. A preset with such layers keeps those of
the head too, and gives blocks of four bits zero points of their own. What that is worth: docs/results/real_model.md."""

EIGHT_BIT_BLOCKS = (32, 64)
"""Block lengths of those layers, the largest that divides: in eight bits a scale for 64 weights loses nothing, and what it
saves pays for the zero points."""

TABLE_BLOCK = 32
"""Columns of the embedding that share a scale."""

BLOCKS = f"{VISION}.blocks."
FIRST_BLOCK = f"{BLOCKS}0."
"""The block whose rounded inputs disturb a picture most, as every later one works on what it gives: docs/results/vision.md
has what its 14 bits are worth on trained towers."""

TABLE, HEAD = f"{EMBED}.table", f"{DECODER}.head"
"""The matrix that ids are looked up in, and the one that gives logits."""


@dataclass(frozen=True)
class OnnxChoices:
    """Resolved options.

    Attributes:
        vision_precision: ``int8`` rounds activations too, a scale a token, those up to the first block in 14 bits;
            ``int8_weights`` keeps them float32.
        accuracy_level: of int4 layers; 4 rounds their input to int8 per block, 0 keeps it.
        head_precision: of the language head in int4 packages.
        block_size: columns that share an int4 scale; ``auto`` chooses layer by layer.
        symmetric: int4 blocks share the constant zero point 8; else each stores its own.
        preset: of `EIGHT_BITS`, which layers of int4 packages keep eight bits, or `COMPACT`.
        prefill_precision: of a second decoder for calls of many rows (`export.backends.onnx.many_rows`); "" for none.
        decoder_library: whether the decoder is compiled beside its graph (`export.backends.onnx.decoder_library`).
        vision_library: whether the vision tower is (`export.backends.onnx.vision_library`).
        cache: dtype of the key/value cache; ``int8`` by ``cache_precision``.
    """

    precision: str
    vision_precision: str
    embed_precision: str
    head_precision: str = "int4"
    block_size: int | str = 32
    accuracy_level: int = 4
    symmetric: bool = True
    cache: str = "float32"
    preset: str = PLAIN
    prefill_precision: str = ""
    decoder_library: bool = False
    vision_library: bool = False


def choices(options: BuildOptions, reads_embedding: bool = False, one_table: bool = False) -> OnnxChoices:
    """The user's options over the defaults of the precision.

    Args:
        reads_embedding: expert gates read the token embedding (Awaker), so that its rounding can change which expert is
            chosen; its default is float16 then.
        one_table: the head is the embedding, and may read that stage's file; its default is the embedding's eight bits then.

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
    eight_bits = "int8" if options.target.backends == (records.ONNX,) else "int8_weights"
    defaults: Mapping[str, Any] = {
        "vision_precision": plain or eight_bits,
        "embed_precision": plain or ("fp16" if reads_embedding else "int8"),
        "cache": "float32" if options.precision == "fp32" else "float16",
    }
    given = {name: options.extra[name] for name in ALLOWED if name in options.extra}
    merged = {**defaults, **given}
    if merged.pop("cache_precision", None) and options.precision == "int4":
        if "cache" in given:
            raise UsageError("--cache-dtype and --cache-precision were both given", "one of them", "leave one out")
        merged["cache"] = INT8_CACHE
    once = one_table and options.precision == "int4" and merged["embed_precision"] == "int8"
    preset = merged.get("preset", PLAIN)
    widened = bool(EIGHT_BITS[preset])
    if preset == COMPACT:
        merged.setdefault("block_size", AUTO)
    if once or widened:
        merged.setdefault("head_precision", "int8")
    if widened:
        merged.setdefault("symmetric", False)
    return OnnxChoices(options.precision, **merged)


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
    return _decoder(layer, asked, chosen)


def sharing(assignments: Mapping[str, Assignment]) -> dict[str, Assignment]:
    """The assignments of a model whose head is its embedding: in eight bits both, the file holds the matrix once.

    GatherBlockQuantized and MatMulNBits read the same bytes, codes row by row and float16 scales.
    """
    table, head = assignments[TABLE], assignments[HEAD]
    if not (table.storage is head.storage is Storage.INT8):
        return dict(assignments)
    once = replace(head, grid=f"ort_int8_b{TABLE_BLOCK}", reason="the embedding's own codes, stored once", shares=TABLE)
    return {**assignments, HEAD: once}


def _decoder(layer: LayerShape, asked: str, chosen: OnnxChoices) -> Assignment:
    """A layer of the decoder or its head, in four or eight bits."""
    kept = EIGHT_BITS[chosen.preset].intersection(layer.name.split(".")) if asked == "int4" else ()
    if kept:
        block = length_for(layer.columns, AUTO, EIGHT_BIT_BLOCKS)
        reason = f"{', '.join(kept)} keeps eight bits in the preset {chosen.preset}, blocks of {block}"
        return Assignment(layer, Storage.INT8, f"ort_int8_b{block}", reason + _tail(layer.columns, block))
    block = length_for(layer.columns, chosen.block_size, BLOCK_SIZES)
    four = f"ort_int4_b{block}" if chosen.symmetric else f"ort_int4_asym_b{block}"
    grid = f"ort_int8_b{block}" if asked == "int8" else four
    return Assignment(layer, Storage(asked), grid, f"blocks of {block}" + _tail(layer.columns, block))


def rounds_finely(name: str, grid: str = TOKEN_GRID) -> bool:
    """Whether a layer of an ``int8`` tower rounds its input to 14 bits: those up to the first block, and those of
    `FINE_GRID`, which a choice makes so. All others to 7.
    """
    return grid == FINE_GRID or not name.startswith(BLOCKS) or name.startswith(FIRST_BLOCK)


def _vision(layer: LayerShape, asked: str) -> Assignment:
    if asked != "int8":
        return Assignment(layer, Storage.INT8, "ort_int8_b32", "blocks of 32" + _tail(layer.columns, 32))
    reason = f"one scale a row and one a token, so that {layer.columns} columns need be no multiple of a block"
    if rounds_finely(layer.name):
        reason = f"inputs up to the first block in 14 bits; {reason}"
    return Assignment(layer, Storage.INT8, TOKEN_GRID, reason)


def _embedding(layer: LayerShape, asked: str) -> Assignment:
    if layer.columns % TABLE_BLOCK:
        return Assignment(layer, Storage.FP16, reason=f"{layer.columns} columns are no multiple of {TABLE_BLOCK}")
    reason = f"blocks of {TABLE_BLOCK}, rows dequantised as they are looked up"
    return Assignment(layer, Storage(asked), f"ort_gather_{asked}_b{TABLE_BLOCK}", reason)


def _tail(columns: int, block: int) -> str:
    """What happens to columns that do not fill a block."""
    rest = columns % block
    if not rest:
        return ""
    return f"; {columns} columns are no multiple, the last block holds {rest} and is padded with its zero point"
