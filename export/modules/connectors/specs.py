"""Typed descriptions of connectors: what brings the rows of a vision encoder to the width of the decoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResamplerSpec:
    """One cross-attention from learned queries to the vision features (MiniCPM-V, OmniLMM).

    Attributes:
        fixed_positions: vision tokens when the key position table is stored for one grid; None when
            ``key_positions`` (tokens, width) is an input of the stage.
    """

    vision_width: int
    width: int
    queries: int
    heads: int
    norm_eps: float
    fixed_positions: int | None
    project_vision: bool = True


@dataclass(frozen=True)
class MlpConnectorSpec:
    """LayerNorm, then linear, exact GELU, linear on every vision row (XVERSE-V).

    Attributes:
        norm_eps: None without the LayerNorm, as LLaVA 1.5 has it.
    """

    vision_width: int
    width: int
    tokens: int
    norm_eps: float | None


@dataclass(frozen=True)
class WindowConnectorSpec:
    """A strided convolution over windows of patches, exact GELU, linear, and a learned row at either end (WeMM).

    The windows arrive as an index (cells, kernel * kernel) into the vision rows, so that any grid and its replicate
    padding is a gather.
    """

    vision_width: int
    width: int
    kernel: int
    splitters: int


@dataclass(frozen=True)
class GluConnectorSpec:
    """2 x 2 convolution, linear, LayerNorm, GELU, gated MLP, and a learned row at either end (CogVLM2).

    Attributes:
        grid: side of the square patch grid; the class row that comes first is dropped.
    """

    vision_width: int
    width: int
    mlp_width: int
    grid: int
    norm_eps: float


@dataclass(frozen=True)
class PatchMergerSpec:
    """LayerNorm per patch, groups of merge * merge patches joined, linear, exact GELU, linear (Qwen2-VL)."""

    vision_width: int
    width: int
    merge: int
    norm_eps: float


ConnectorSpec = ResamplerSpec | MlpConnectorSpec | WindowConnectorSpec | GluConnectorSpec | PatchMergerSpec
"""The kinds of connector; a new kind is added here and in export/modules/connectors/."""
