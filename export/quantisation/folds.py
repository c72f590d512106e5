"""Where a factor on a layer's input columns can be undone without a new operation: which weights take it, which its inverse.

A fold names the layers that read one activation and the parameters that make it: a norm's weight, the value rows of qkv
(attention mixes rows, never channels, so a value channel's factor comes out of it unchanged), or the up rows of gate_up.
Source: the sets that mit-han-lab/llm-awq, awq/quantize/auto_scale.py, scales.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import DecoderSpec, ModelSpec


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
        yield block, spec.decoder.layer_kind.folds(spec.decoder, block)
    if not spec.decoder.tied_head:
        yield "decoder.head", [Fold(("decoder.head",), (Source("decoder.norm.weight"),))]


# the parts of which kinds of decoder layer make their folds (`export.modules.decoders.base.AdapterSpec.folds`)


def projected(block: str) -> tuple[str, str, str, str]:
    """Names of a layer's projections: qkv, out, gate_up, down."""
    return f"{block}.attention.qkv", f"{block}.attention.out", f"{block}.mlp.gate_up", f"{block}.mlp.down"


def around(
    decoder: DecoderSpec,
    block: str,
    qkv: tuple[str, ...],
    out: tuple[str, ...],
    gate_up: tuple[str, ...],
    values: tuple[Source, ...],
) -> list[Fold]:
    """The folds of a layer's two norms and of what attention mixes.

    Args:
        qkv, out, gate_up: all layers that read the input of each projection.
        values: all rows that make values (`value_rows`).
    """
    return [
        Fold(qkv, (Source(f"{block}.input_norm.weight"),)),
        Fold(out, values, decoder.kv_heads, decoder.heads // decoder.kv_heads),
        Fold(gate_up, (Source(f"{block}.post_norm.weight"),)),
    ]


def value_rows(decoder: DecoderSpec, qkv: str, biased: bool) -> tuple[Source, ...]:
    """The rows of a layer with rows q | k | v that make values."""
    values = decoder.kv_heads * decoder.head_dim
    first = decoder.heads * decoder.head_dim + values
    names = (f"{qkv}.weight", f"{qkv}.bias") if biased else (f"{qkv}.weight",)
    return tuple(Source(name, first, first + values) for name in names)


def up_rows(decoder: DecoderSpec, gate_up: str) -> tuple[Source, ...]:
    """The rows of a layer with rows gate | up that the gate multiplies."""
    return (Source(f"{gate_up}.weight", decoder.mlp_width, 2 * decoder.mlp_width),)


def delta_rows(layer: str, width: int) -> tuple[Source, ...]:
    """All ``width`` rows of a layer that is added to another's."""
    return (Source(f"{layer}.weight", 0, width),)
