"""Integer codes of a quantised matrix, and where they come from.

Every writer of a package and the dequantised reference of the parity tests ask the same `CodeSource`, so that both hold
the same integers whatever method chose them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from export.quantisation.spec import Assignment

if TYPE_CHECKING:
    from torch import Tensor

    from export.quantisation.grids import Grid


@dataclass(frozen=True)
class Codes:
    """Some rows of a quantised matrix.

    Attributes:
        codes: uint8 (rows, groups * group), unsigned codes; columns beyond the matrix hold the grid's padding code.
        scales: (rows, groups) in the grid's scale dtype.
        zero_points: uint8 (rows, groups), or None when the grid's zero point is a constant.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None = None


def joined(parts: Sequence[Codes]) -> Codes:
    """Consecutive rows as one."""
    import torch

    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Codes(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if zeros else None,
    )


@dataclass(frozen=True)
class GroupParameters:
    """What groups store beside their codes, as float32 values that the file holds exactly.

    Attributes:
        scales: any shape; a calibration method keeps (rows, groups).
        zeros: the same shape; the code that reads back as 0.
    """

    scales: Tensor
    zeros: Tensor

    def __getitem__(self, index: Any) -> GroupParameters:
        return GroupParameters(self.scales[index], self.zeros[index])


class WeightProvider(Protocol):
    """Parameters by canonical name, whole or by rows (export.source.weight_map.WeightMap is one)."""

    def shape(self, target: str) -> tuple[int, ...]: ...

    def tensor(self, target: str) -> Tensor: ...

    def rows(self, target: str, start: int, stop: int | None) -> Tensor: ...


class CodeSource(Protocol):
    """Where the codes of a layer come from: rounding now, or a calibration that ran before."""

    def rows(self, layer: str, start: int, stop: int) -> Codes:
        """Codes of rows ``start`` to ``stop`` of ``layer``'s weight (canonical module name, without ``.weight``)."""
        ...


class RoundToNearest:
    """Codes by rounding each group on its layer's grid, computed from the weights as they are asked for."""

    def __init__(self, weights: WeightProvider, assignments: Mapping[str, Assignment], grids: Mapping[str, Grid]) -> None:
        self.weights = weights
        self.assignments = assignments
        self.grids = grids

    def rows(self, layer: str, start: int, stop: int) -> Codes:
        grid = self.grids[self.assignments[layer].grid]
        return grid.quantise(self.weights.rows(f"{layer}.weight", start, stop))


class DequantisedWeights:
    """A WeightProvider whose quantised layers come back from their codes: the reference of an int4 package."""

    def __init__(
        self, weights: WeightProvider, codes: CodeSource, assignments: Mapping[str, Assignment], grids: Mapping[str, Grid]
    ) -> None:
        self.weights, self.codes, self.assignments, self.grids = weights, codes, assignments, grids

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        shape = self.shape(target)
        return self.rows(target, 0, shape[0] if shape else None)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        layer = target.removesuffix(".weight")
        assignment = self.assignments.get(layer)
        # a parameter without axes has no rows to cut, and is never quantised
        if assignment is None or not assignment.grid or stop is None:
            return self.weights.rows(target, start, stop)
        grid = self.grids[assignment.grid]
        return grid.dequantise(self.codes.rows(layer, start, stop))[:, : assignment.layer.columns]
