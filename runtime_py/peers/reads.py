"""Bytes that a step of a decoder reads: its matrices as they are stored, and the keys and values of earlier positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from runtime_py.backends.records import MLC, ONNX
from runtime_py.peers.shape import HEAD, DecoderShape

MATRICES = {
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.out": ("attn_output",),
    "mlp.gate_up": ("ffn_gate", "ffn_up"),
    "mlp.down": ("ffn_down",),
}
"""Of a layer, in a manifest's words and in GGUF's."""

MLC_BITS = {"q4f16_1": 4 + 16 / 32, "q4f32_1": 4 + 32 / 32}
STORED_BITS = {"fp16": 16.0, "fp32": 32.0}
CACHE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
"""Of a number; the scales of an int8 cache are not counted."""


@dataclass(frozen=True)
class Reads:
    """Bytes.

    Attributes:
        weights: of the matrices that every step reads.
        position: of the keys and values of one position.
    """

    weights: float
    position: float

    def of_step(self, length: int, steps: int) -> float:
        """Bytes of one of ``steps`` steps behind ``length`` positions, on average."""
        return self.weights + self.position * (length + (steps + 1) / 2)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def position_bytes(shape: DecoderShape, number: int) -> int:
    """Of keys and values whose numbers have so many bytes."""
    return 2 * shape.layers * shape.kv_heads * shape.head_width * number


def of_package(manifest: Mapping[str, Any], shape: DecoderShape) -> Reads | None:
    """What a package's decoder reads; None where its manifest does not name every matrix of the shape and no other, or a
    grid or a cache that are not known here.
    """
    sizes: dict[str, int] = {}
    for name, rows, columns in shape.matrices():
        sizes[name.removeprefix("blk.{}.").removesuffix(".weight")] = rows * columns
    expected = {f"decoder.layers.{layer}.{name}": parts for layer in range(shape.layers) for name, parts in MATRICES.items()}
    expected["decoder.head"] = (HEAD.removesuffix(".weight"),)
    stored = {name: row for name, row in manifest.get("assignments", {}).items() if name.startswith("decoder.")}
    bits = {name: stored_bits(row["grid"], row["storage"]) for name, row in stored.items()}
    number = _cache_bytes(manifest)
    if bits.keys() != expected.keys() or not all(bits.values()) or not number:
        return None
    total = sum(sizes[part] * (bits[name] or 0) / 8 for name, parts in expected.items() for part in parts)
    return Reads(total, position_bytes(shape, number))


def stored_bits(grid: str, storage: str) -> float | None:
    """Of a weight with its part of the scale (and of the zero point), in a grid or, where that is "", a storage; None where
    it is not known.
    """
    if not grid:
        return STORED_BITS.get(storage)
    if grid in MLC_BITS:
        return MLC_BITS[grid]
    blocks = re.fullmatch(r"ort_int([48])(_asym)?_b(\d+)", grid)
    if blocks is None:
        return None
    code, block = int(blocks[1]), int(blocks[3])
    return code + (16 + (code if blocks[2] else 0)) / block


def _cache_bytes(manifest: Mapping[str, Any]) -> int:
    """Of a number in the cache; 0 where it is not known."""
    blocks = manifest.get("backends", {})
    block: Mapping[str, Any] = blocks.get(ONNX.name) or blocks.get(MLC.name) or {}
    cache = block.get("cache") or block.get("dtype")
    return CACHE_BYTES.get(str(cache["dtype"] if isinstance(cache, Mapping) else cache), 0)
