"""The one interface of calibration methods, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.moments import Moment, output_error
from export.quantisation.codes import Codes, GroupParameters
from export.quantisation.grids import Grid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerProblem:
    """One layer to quantise, or some of its rows: all methods treat rows independently.

    Attributes:
        name: canonical module name.
        weight: float32 (rows, columns).
        moment: of the layer's inputs; None when no sample reached the layer or the method wants none.
    """

    name: str
    weight: Tensor
    grid: Grid
    moment: Moment | None = None

    @property
    def group(self) -> int:
        """Columns of a group."""
        return self.grid.group or self.weight.shape[1]

    @property
    def groups(self) -> int:
        return -(-self.weight.shape[1] // self.group)

    def some_rows(self, start: int, stop: int) -> LayerProblem:
        return replace(self, weight=self.weight[start:stop])

    def blocks(self, rows: Tensor) -> Tensor:
        """(rows, columns) as groups (rows, groups, group), the tail filled with zeros."""
        import torch

        missing = self.groups * self.group - rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
        return padded.view(len(rows), self.groups, self.group)

    def flat(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`."""
        return blocks.reshape(len(blocks), -1)[:, : self.weight.shape[1]]

    def codes(self, blocks: Tensor, parameters: GroupParameters) -> Codes:
        """What is stored, of codes (rows, groups, group) and parameters (rows, groups)."""
        return self.grid.codes(self.flat(blocks), parameters)

    def change(self, codes: Codes) -> Tensor:
        """What quantising changes: dequantised weight minus weight."""
        return self.grid.dequantise(codes)[:, : self.weight.shape[1]] - self.weight


class Method(Protocol):
    """A way to choose codes.

    Attributes:
        name: on the command line.
        title: one line for people.
        longer: it takes longer than GPTQ, by which a calibration's time is foretold (calibrate.statistics.forecast).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    longer: ClassVar[bool]

    def run(self, layer: LayerProblem) -> Codes:
        """Codes of the layer's rows on its grid."""
        ...


@runtime_checkable
class BlockMethod(Protocol):
    """A method that chooses the codes of all layers of a block together."""

    def tune(self, layers: Mapping[str, LayerProblem], run: BlockRun) -> dict[str, Codes]:
        """Codes by layer; with them the block's output is no further off than with plain rounding of all of them."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a method made of some rows, beside plain rounding.

    Attributes:
        error, rounded_error: summed squared output error of the chosen codes and of plain rounding.
        power: summed squared output of the rows themselves.
        kept_rows: rows in which plain rounding was better, and was taken.
    """

    codes: Codes
    error: float
    rounded_error: float
    power: float
    kept_rows: int


def solve(method: Method, layer: LayerProblem) -> Outcome:
    """Run a method; rows in which plain rounding has the smaller output error keep plain rounding.

    So no method is ever worse than rounding on the samples it saw.
    """
    import torch

    outcome, plain = method.run(layer), layer.grid.quantise(layer.weight)
    error = output_error(layer.change(outcome), layer.moment)
    rounded = output_error(layer.change(plain), layer.moment)
    worse = rounded < error
    codes = outcome
    if bool(worse.any()):
        pick = worse[:, None]
        zeros = None
        if outcome.zero_points is not None and plain.zero_points is not None:
            zeros = torch.where(pick, plain.zero_points, outcome.zero_points)
        codes = Codes(torch.where(pick, plain.codes, outcome.codes), torch.where(pick, plain.scales, outcome.scales), zeros)
    return Outcome(
        codes,
        float(torch.minimum(error, rounded).double().sum()),
        float(rounded.double().sum()),
        float(output_error(layer.weight, layer.moment).double().sum()),
        int(worse.sum()),
    )


def measured(layer: LayerProblem, codes: Codes) -> Outcome:
    """Codes that were chosen elsewhere, beside plain rounding; they are taken as they are."""
    plain = layer.grid.quantise(layer.weight)

    def total(change: Tensor) -> float:
        return float(output_error(change, layer.moment).double().sum())

    return Outcome(codes, total(layer.change(codes)), total(layer.change(plain)), total(layer.weight), 0)
