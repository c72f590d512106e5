"""What a kind of vision tower says of itself, so that nothing else asks which kind it is.

A kind is a frozen dataclass under `TowerSpec`, which a family may have in its own folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from export.modules.kind import Kind
from runtime_py.contracts import Dimension, TensorContract

OPEN_TOKENS = "vision_tokens"
"""The axis of vision tokens whose number follows from the picture."""


@dataclass(frozen=True)
class TowerStructure:
    """How a tower is put together, as far as plans and backends ask.

    Attributes:
        patch_values: numbers in one patch (channels * frames * rows * columns).
        grid: (rows, columns) of patches where every picture has one size, else None.
        special_tokens: learned rows in front of the patches that go through every block (class tokens, registers).
        input_norm: a norm before the first block.
        final_norm: a norm after the last block.
        branch_norms: the norms of a block follow attention and MLP, in place of standing before them.
        changed_heads: queries and keys are changed between their projection and attention (rotated, normalised).
    """

    patch_values: int
    grid: tuple[int, int] | None = None
    special_tokens: int = 0
    input_norm: bool = False
    final_norm: bool = True
    branch_norms: bool = False
    changed_heads: bool = False

    @property
    def patches(self) -> int | None:
        """Patches of a picture where every one has as many."""
        return None if self.grid is None else self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TowerSpec(Kind, ABC):
    """Sizes of what makes rows of a picture: ``layers`` blocks of attention and MLP.

    Attributes:
        width: values of a row, which are those of all heads together.
        module: see `Kind`; its ``forward`` takes the `inputs` and gives (images, rows, width).
        block: see `Kind`; called as ``Class(spec, layers, most)``, where ``most`` is the number of tokens to plan for. Its
            ``cut(image, rows, columns, picture)`` makes patches (1, rows * columns, patch_values) of a picture, uint8
            (1, height, width, 3) or the contract's pixels; its ``forward`` takes them, and the further inputs by name.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    @abstractmethod
    def structure(self) -> TowerStructure:
        """How it is put together."""

    @property
    def rows(self) -> Dimension:
        """Rows of one image in the stage's contract: its patches, where a kind does not say otherwise."""
        return self.structure.patches or OPEN_TOKENS

    @abstractmethod
    def inputs(self, dtype: str) -> tuple[TensorContract, ...]:
        """The stage's inputs in the order in which ``forward`` takes them, ``pixel_values`` first.

        Args:
            dtype: the float dtype at the borders of stages.
        """


def pixels(dtype: str, grid: tuple[int, int] | None, patch: int) -> TensorContract:
    """``pixel_values`` of whole pictures: (rows, columns) patches of ``patch`` pixels a side, or of any size for None."""
    size: tuple[Dimension, Dimension] = ("height", "width") if grid is None else (grid[0] * patch, grid[1] * patch)
    return TensorContract("pixel_values", dtype, ("images", 3, *size))
