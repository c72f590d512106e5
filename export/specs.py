"""Typed descriptions of a model: what a family declares and what every builder (PyTorch, Relax) reads.

A spec holds sizes and choices, never weights. `export.modules` builds it in PyTorch, `export.backends.mlc.blocks` in
Relax; both use the parameter names given there, which are the canonical names of `export.source.weight_map`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from export.modules.connectors.base import ConnectorSpec
from export.modules.decoders.base import AdapterSpec
from export.modules.decoders.specs import UNADAPTED
from export.modules.vision.base import TowerSpec


class Activation(StrEnum):
    """Non-linearities by their exact form."""

    GELU = "gelu"  # exact, erf
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"  # x * sigmoid(1.702 x)
    SILU = "silu"


@dataclass(frozen=True)
class EmbedSpec:
    """The token embedding; ``scale`` multiplies every row."""

    vocabulary: int
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions, half-split form.

    Attributes:
        sections: M-RoPE: how many of the dim / 2 frequencies each position axis drives; empty for one axis.
        stored: the frequencies are a parameter, ``decoder.attend.frequencies`` (dim / 2,), read from the checkpoint.
    """

    theta: float
    dim: int
    sections: tuple[int, ...] = ()
    stored: bool = False


@dataclass(frozen=True)
class DecoderSpec:
    """A Llama-shaped decoder.

    Attributes:
        residual_scale: multiplies both branches before they join the residual stream.
        logit_divisor: divides the normalised hidden state before the head.
        adapter: what makes rows or requests use other weights, if anything does.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    qkv_bias: bool = False
    tied_head: bool = False
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    adapter: AdapterSpec | None = None

    @property
    def layer_kind(self) -> AdapterSpec:
        """What its layers are: those of its adapter, or plain ones."""
        return UNADAPTED if self.adapter is None else self.adapter


class SizeRule(StrEnum):
    """What becomes of a picture's size before the vision encoder sees it."""

    SQUARE = "square"  # squeezed into one square
    TILES = "tiles"  # a square view of the whole, and square tiles beside it
    SLICES = "slices"  # a view of the whole and slices beside it, each of about one area, in any aspect
    AREA = "area"  # sides rounded to whole patches, the area between two bounds
    EDGES = "edges"  # the longer side bounded, the shorter at least something, then padded to whole patches


@dataclass(frozen=True)
class ImageSpec:
    """Pictures as the vision encoder gets them; what backends need of a family's preprocessing.

    Attributes:
        patch: pixels along a side of a patch.
        overview: side of the square picture that the processor leaves as it is, in pixels; what a phone sends.
        typical: side of a square with about as many pixels as a piece of a picture usually has.
        mean, deviation: of red, green and blue on a scale from 0 to 1.
        pieces: arrays that one picture becomes at most.
        longest: longest side of a piece in pixels, before padding; None where only its area is bounded.
    """

    patch: int
    rule: SizeRule
    overview: int
    typical: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    pieces: int = 1
    longest: int | None = None


@dataclass(frozen=True)
class StageSpecs:
    """What the four stages are built from, and nothing else of a model; equal ones have equal parameters."""

    vision: TowerSpec
    connector: ConnectorSpec
    embed: EmbedSpec
    decoder: DecoderSpec


@dataclass(frozen=True)
class ModelSpec:
    """A whole checkpoint, ready to be built.

    Attributes:
        family: registry name, e.g. ``minicpm-v``.
        variant: which published version, e.g. ``1.0``.
        image: how a picture reaches the vision encoder.
        image_rows: rows of image features that one picture puts into the prompt at most.
        runtime: JSON-able settings of the family's processor (see runtime_py/preprocess), which alone reads them.
        generation: defaults of generation: ``stop_ids``, ``temperature``, ``top_k``, ``top_p``,
            ``repetition_penalty``, ``max_new_tokens``.
        facts: JSON-able remarks for the manifest (what was read from where, what was defaulted).
    """

    family: str
    variant: str
    vision: TowerSpec
    connector: ConnectorSpec
    embed: EmbedSpec
    decoder: DecoderSpec
    image: ImageSpec
    image_rows: int
    runtime: dict[str, Any]
    generation: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> StageSpecs:
        """The stages alone: hashable, so that what follows from them can be kept by it."""
        return StageSpecs(self.vision, self.connector, self.embed, self.decoder)
