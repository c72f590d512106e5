"""Where a factor on a layer's input columns can be undone without a new operation: which weights take it, which its inverse.

A fold names the layers that read one activation and the parameters that make it: a norm's weight, the value rows of qkv
(attention mixes rows, never channels, so a value channel's factor comes out of it unchanged), or the up rows of gate_up.
Source: the sets that mit-han-lab/llm-awq, awq/quantize/auto_scale.py, scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.specs import ModelSpec, PartialLora, RoutedLora, VisualExperts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Source:
    """Rows ``start`` to ``stop`` of a parameter (all of them without ``stop``), which are divided by the factors."""

    parameter: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Fold:
    """One activation that may be scaled.

    Attributes:
        layers: canonical names of the linear layers that read it; their columns are multiplied.
        sources: what makes it.
        heads, share: columns are (heads, share, channels); a source has (heads, channels) rows, each for ``share`` columns.
    """

    layers: tuple[str, ...]
    sources: tuple[Source, ...]
    heads: int = 1
    share: int = 1

    def source_factors(self, factors: Tensor) -> Tensor:
        """Factors of the columns as factors of the source's rows."""
        # columns that one source channel feeds have equal factors, so that the first of them stands for all
        return factors.view(self.heads, self.share, -1)[:, 0].reshape(-1)


def decoder_folds(spec: ModelSpec) -> Iterator[tuple[str, list[Fold]]]:
    """Block name (``decoder.layers.0``, ..., then ``decoder.head``) and its folds."""
    for index in range(spec.decoder.layers):
        block = f"decoder.layers.{index}"
        yield block, _block_folds(spec, block)
    if not spec.decoder.tied_head:
        yield "decoder.head", [Fold(("decoder.head",), (Source("decoder.norm.weight"),))]


def _block_folds(spec: ModelSpec, block: str) -> list[Fold]:
    decoder, adapter = spec.decoder, spec.decoder.adapter
    width, values = decoder.mlp_width, decoder.kv_heads * decoder.head_dim
    first = decoder.heads * decoder.head_dim + values
    share = decoder.heads // decoder.kv_heads
    attention, mlp = f"{block}.attention", f"{block}.mlp"

    def rows(layer: str, start: int, stop: int, biased: bool) -> tuple[Source, ...]:
        names = (f"{layer}.weight", f"{layer}.bias") if biased else (f"{layer}.weight",)
        return tuple(Source(name, start, stop) for name in names)

    def folds(qkv: tuple[str, ...], out: tuple[str, ...], gate_up: tuple[str, ...]) -> list[Fold]:
        """The three folds whose layers differ by adapter; ``down`` follows, since experts have one each."""
        sources = sum((rows(name, first, first + values, _biased(spec, name)) for name in _weights(qkv)), ())
        if isinstance(adapter, PartialLora):
            sources += rows(f"{attention}.qkv.lora_b.0", first, first + values, False)
        return [
            Fold(qkv, (Source(f"{block}.input_norm.weight"),)),
            Fold(out, sources, decoder.kv_heads, share),
            Fold(gate_up, (Source(f"{block}.post_norm.weight"),)),
        ]

    def down(gate_up: str, layers: tuple[str, ...], low_rank: bool = False) -> Fold:
        sources = rows(gate_up, width, 2 * width, False)
        if low_rank:
            sources += rows(f"{mlp}.gate_up.lora_b.1", 0, width, False)
        return Fold(layers, sources)

    def pair(name: str) -> tuple[str, str]:
        return f"{name}.base", f"{name}.lora_a"

    match adapter:
        case None:
            around = folds((f"{attention}.qkv",), (f"{attention}.out",), (f"{mlp}.gate_up",))
            return [*around, down(f"{mlp}.gate_up", (f"{mlp}.down",))]
        case PartialLora() | RoutedLora():
            qkv = pair(f"{attention}.qkv") if isinstance(adapter, PartialLora) else (f"{attention}.qkv",)
            around = folds(qkv, pair(f"{attention}.out"), pair(f"{mlp}.gate_up"))
            return [*around, down(f"{mlp}.gate_up.base", pair(f"{mlp}.down"), low_rank=True)]
        case VisualExperts():
            both = ("language", "vision")
            around = folds(
                tuple(f"{attention}.qkv.{e}" for e in both),
                tuple(f"{attention}.out.{e}" for e in both),
                tuple(f"{mlp}.{e}.gate_up" for e in both),
            )
            return [*around, *(down(f"{mlp}.{e}.gate_up", (f"{mlp}.{e}.down",)) for e in both)]


def _weights(names: tuple[str, ...]) -> list[str]:
    """Those that make the activation itself; a low-rank ``lora_a`` only makes its own rank."""
    return [name for name in names if not name.endswith(".lora_a")]


def _biased(spec: ModelSpec, layer: str) -> bool:
    if isinstance(spec.decoder.adapter, VisualExperts):
        return layer.endswith(".vision")
    return spec.decoder.qkv_bias
