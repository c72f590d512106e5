"""GPTQ: round column by column, and let the columns still to come make up for what was lost.

With the damped second moment H = U U^T, U upper triangular, the output error of a change e is |U^T e|^2, and entry j of
U^T e involves columns 0 to j only. So column j is rounded at the value that makes its entry zero,

    x_j = w_j + sum over k < j of U_kj (w_k - q_k) / U_jj

which is what the published loop arrives at through the Cholesky factor of the inverse (Frantar et al., arXiv 2210.17323;
that the two agree: Chen et al., arXiv 2507.18553). Here nothing is inverted, and the sum is one matrix product per block
of columns plus a short one inside the block.

Columns go in order of their inputs' power. Every group's parameters are fixed before the first column is rounded, so that
groups stay neighbours in the file whatever the order ("static groups").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import rounded, searched
from export.quantisation.codes import Codes, GroupParameters

if TYPE_CHECKING:
    from torch import Tensor

    from calibrate.statistics.moments import Moment

DAMPING = 0.01
"""Share of the mean diagonal added to the diagonal, as published."""

BLOCK = 64
"""Columns whose corrections wait for one matrix product."""


class Gptq:
    """Columns rounded one after another, each making up for what those before it lost.

    Args:
        damping: share of the mean diagonal that is added to the moment's diagonal.
        ordered: columns with the largest inputs first; else as they stand.
    """

    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ with activation order and static groups"
    longer: ClassVar[bool] = False

    def __init__(self, damping: float = DAMPING, ordered: bool = True) -> None:
        self.damping, self.ordered = damping, ordered

    def prepare(self, moment: Moment) -> None:
        """Factor the moment, which keeps what it finds."""
        moment.factor(self.damping, self.ordered)

    def run(self, layer: LayerProblem) -> Codes:
        """Codes of the layer on its grid; nearest codes with searched clips for a layer that no sample reached."""
        parameters = searched(layer, coarse=True)
        if layer.moment is None:
            return layer.codes(rounded(layer, parameters), parameters)
        order, upper = layer.moment.factor(self.damping, self.ordered)
        codes = column_by_column(layer, parameters, order, upper)
        return layer.grid.codes(codes, parameters)


def column_by_column(layer: LayerProblem, parameters: GroupParameters, order: Tensor, upper: Tensor) -> Tensor:
    """Codes (rows, columns) as float32.

    Args:
        parameters: (rows, groups).
        order: the columns, first to be rounded first.
        upper: U of the module's docstring, rows and columns in that order.
    """
    import torch

    grid, columns = layer.grid, len(order)
    # columns as rows, so that each is one piece of memory
    weight = layer.weight.T[order].contiguous()
    steps = upper / upper.diagonal()
    group_of = (order // layer.group).tolist()
    by_group = GroupParameters(parameters.scales.T.contiguous(), parameters.zeros.T.contiguous())
    carried = torch.zeros_like(weight)
    codes = torch.empty_like(weight)
    lost = torch.empty(BLOCK, weight.shape[1])
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        # rows of the transpose are read below, each as one piece of memory
        within = steps[start:stop, start:stop].T.contiguous()
        for index in range(stop - start):
            column = start + index
            value = weight[column] + carried[column]
            if index:
                # what this block's earlier columns lost; `carried` knows only of blocks before
                value.addmv_(lost[:index].T, within[index, :index])
            chosen = by_group[group_of[column]]
            code = grid.round(value, chosen)
            torch.sub(weight[column], grid.read(code, chosen), out=lost[index])
            codes[column] = code
        if stop < columns:
            # one product brings the block's losses to every column behind it
            carried[stop:].addmm_(steps[start:stop, stop:].T, lost[: stop - start])
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.T
