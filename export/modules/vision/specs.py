"""The kinds of vision tower that families here share; one with a kind of its own has it in its folder (`TowerSpec`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from export.modules.vision.base import OPEN_TOKENS, TowerSpec, TowerStructure, pixels
from export.specs import Activation
from runtime_py.contracts import Dimension, TensorContract

FOLDER = "export.modules.vision"


class NormPlacement(StrEnum):
    """Where a vision block normalises."""

    PRE = "pre"  # x + f(norm(x))
    BRANCH_OUTPUT = "branch_output"  # x + norm(f(x))


class PositionKind(StrEnum):
    """How position tables reach a graph."""

    FIXED = "fixed"  # one grid: the table is resampled at export and stored as (tokens, width)
    RESAMPLED = "resampled"  # any grid: the native table is stored, the two 1-D resampling matrices are inputs
    INDEXED = "indexed"  # any grid: the native table is stored, integer position ids are an input


@dataclass(frozen=True)
class VisionSpec(TowerSpec):
    """A plain vision transformer.

    Attributes:
        native_grid: side of the square position table in the checkpoint.
        grid: (rows, columns) of patches when the image size is fixed, else None.
        class_token: a learned row is put in front of the patches and takes part in every block.
        emit_class_token: the class row is part of the stage's output.
        input_norm: LayerNorm before the first block (CLIP).
        final_norm: LayerNorm after the last block.
    """

    patch_size: int
    activation: Activation
    norm_placement: NormPlacement
    norm_eps: float
    positions: PositionKind
    native_grid: int
    grid: tuple[int, int] | None
    patch_bias: bool = True
    class_token: bool = False
    emit_class_token: bool = False
    input_norm: bool = False
    final_norm: bool = True

    module = f"{FOLDER}.transformer:VisionTransformer"

    @property
    def structure(self) -> TowerStructure:
        return TowerStructure(
            patch_values=3 * self.patch_size**2,
            grid=self.grid,
            special_tokens=int(self.class_token),
            input_norm=self.input_norm,
            final_norm=self.final_norm,
            branch_norms=self.norm_placement is NormPlacement.BRANCH_OUTPUT,
        )

    @property
    def rows(self) -> Dimension:
        return OPEN_TOKENS if self.grid is None else self.grid[0] * self.grid[1] + int(self.emit_class_token)

    def inputs(self, dtype: str) -> tuple[TensorContract, ...]:
        inputs = [pixels(dtype, self.grid, self.patch_size)]
        if self.positions is PositionKind.RESAMPLED:
            inputs.append(TensorContract("row_weights", dtype, ("grid_rows", self.native_grid)))
            inputs.append(TensorContract("column_weights", dtype, ("grid_columns", self.native_grid)))
        if self.positions is PositionKind.INDEXED:
            inputs.append(TensorContract("patch_positions", "int64", (OPEN_TOKENS,)))
        return tuple(inputs)


@dataclass(frozen=True)
class RotaryVisionSpec(TowerSpec):
    """A pre-norm vision transformer over flattened patches with 2-D rotary positions (Qwen2-VL).

    Attributes:
        patch_values: numbers in one flattened patch (channels * temporal * rows * columns).
        merge: side of the square of patches that the connector joins; patches arrive grouped that way.
    """

    patch_values: int
    activation: Activation
    norm_eps: float
    merge: int

    module = f"{FOLDER}.rotary_transformer:RotaryVisionTransformer"

    @property
    def structure(self) -> TowerStructure:
        return TowerStructure(self.patch_values, final_norm=False, changed_heads=True)

    def inputs(self, dtype: str) -> tuple[TensorContract, ...]:
        return (
            TensorContract("pixel_values", dtype, ("images", OPEN_TOKENS, self.patch_values)),
            TensorContract("rotary_angles", "float32", (OPEN_TOKENS, self.head_dim // 2)),
        )
