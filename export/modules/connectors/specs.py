"""The kinds of connector that families here share; one with a kind of its own has it in its folder (`ConnectorSpec`)."""

from __future__ import annotations

from dataclasses import dataclass

from export.modules.connectors.base import OPEN_ROWS, ConnectorSpec
from runtime_py.contracts import Dimension, TensorContract

FOLDER = "export.modules.connectors"


@dataclass(frozen=True)
class ResamplerSpec(ConnectorSpec):
    """One cross-attention from learned queries to the vision features (MiniCPM-V, OmniLMM).

    Attributes:
        fixed_positions: vision tokens when the key position table is stored for one grid; None when
            ``key_positions`` (tokens, width) is an input of the stage.
    """

    queries: int
    heads: int
    norm_eps: float
    fixed_positions: int | None
    project_vision: bool = True

    module = f"{FOLDER}.resampler:Resampler"

    @property
    def rows(self) -> Dimension:
        return self.queries

    def side_inputs(self, tokens: Dimension, dtype: str) -> tuple[TensorContract, ...]:
        if self.fixed_positions is not None:
            return ()
        return (TensorContract("key_positions", dtype, (tokens, self.width)),)


@dataclass(frozen=True)
class MlpConnectorSpec(ConnectorSpec):
    """LayerNorm, then linear, exact GELU, linear on every vision row (XVERSE-V).

    Attributes:
        norm_eps: None without the LayerNorm, as LLaVA 1.5 has it.
    """

    tokens: int
    norm_eps: float | None

    module = f"{FOLDER}.projections:MlpConnector"

    @property
    def rows(self) -> Dimension:
        return self.tokens

    @property
    def patches_per_row(self) -> int:
        return 1


@dataclass(frozen=True)
class WindowConnectorSpec(ConnectorSpec):
    """A strided convolution over windows of patches, exact GELU, linear, and a learned row at either end (WeMM).

    The windows arrive as an index (cells, kernel * kernel) into the vision rows, so that any grid and its replicate
    padding is a gather.
    """

    kernel: int
    splitters: int

    module = f"{FOLDER}.projections:WindowConnector"

    @property
    def rows(self) -> Dimension:
        return OPEN_ROWS

    @property
    def patches_per_row(self) -> int:
        return self.kernel**2

    def rows_of(self, grid: tuple[int, int]) -> int:
        return -(-grid[0] // self.kernel) * -(-grid[1] // self.kernel) + self.splitters

    def side_inputs(self, tokens: Dimension, dtype: str) -> tuple[TensorContract, ...]:
        return (TensorContract("window_index", "int64", ("cells", self.kernel**2)),)


@dataclass(frozen=True)
class GluConnectorSpec(ConnectorSpec):
    """2 x 2 convolution, linear, LayerNorm, GELU, gated MLP, and a learned row at either end (CogVLM2).

    Attributes:
        grid: side of the square patch grid; the class row that comes first is dropped.
    """

    mlp_width: int
    grid: int
    norm_eps: float

    module = f"{FOLDER}.projections:GluConnector"

    @property
    def rows(self) -> Dimension:
        return (self.grid // 2) ** 2 + 2

    @property
    def patches_per_row(self) -> int:
        return 4


@dataclass(frozen=True)
class PatchMergerSpec(ConnectorSpec):
    """LayerNorm per patch, groups of merge * merge patches joined, linear, exact GELU, linear (Qwen2-VL)."""

    merge: int
    norm_eps: float

    module = f"{FOLDER}.projections:PatchMerger"

    @property
    def rows(self) -> Dimension:
        return OPEN_ROWS

    @property
    def patches_per_row(self) -> int:
        return self.merge**2

    def rows_of(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1] // self.merge**2
