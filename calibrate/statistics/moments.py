"""What a layer's inputs look like to a calibration method: the second moment of the rows that were seen."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ROWS = 4096

ERROR_COLUMNS = 256
"""Columns of a symmetric product at a time; half of it is never computed."""

SUM_COLUMNS = 576
"""Columns of the moment that one product brings rows to: enough for the product to be quick, few enough that little below
the diagonal is computed. Narrower moments are one product."""


class Moment:
    """H = sum of w x x^T over the input rows x of one layer and their weights w, float32 (columns, columns).

    The output error of a changed weight is ``tr(E H E^T) / count``, E the change: nothing else of the samples matters to a
    method that minimises it. Derived matrices are kept, so that chunks of a large layer's rows share them.
    """

    def __init__(self, columns: int) -> None:
        import torch

        self._sum, self._mirrored = torch.zeros(columns, columns), True
        self.count = 0
        self._factors: dict[tuple[float, bool], tuple[Tensor, Tensor]] = {}
        self._lock = RLock()

    @classmethod
    def of(cls, rows: Tensor) -> Moment:
        """The moment of (..., columns) rows."""
        moment = cls(rows.shape[-1])
        moment.add(rows)
        return moment

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Take in (..., columns) rows, with one weight (rows,) each or all of weight 1."""
        flat = rows.detach().reshape(-1, rows.shape[-1]).float()
        if weights is not None:
            # w x x^T is the square of sqrt(w) x, so that one product serves both cases
            flat = flat * weights.sqrt()[:, None]
        columns = flat.shape[1]
        for part in flat.split(CHUNK_ROWS):
            for start in range(0, columns, SUM_COLUMNS):
                # what lies below the diagonal is the mirror of what lies above, and is left for the end
                self._sum[start : start + SUM_COLUMNS, start:].addmm_(
                    part[:, start : start + SUM_COLUMNS].T, part[:, start:]
                )
        self.count += len(flat)
        self._mirrored = columns <= SUM_COLUMNS
        self.forget()

    def forget(self) -> None:
        """Drop the derived matrices."""
        self._factors.clear()

    @property
    def matrix(self) -> Tensor:
        """H, whole."""
        with self._lock:
            if not self._mirrored:
                for start in range(0, len(self._sum), SUM_COLUMNS):
                    stop = start + SUM_COLUMNS
                    self._sum[stop:, start:stop] = self._sum[start:stop, stop:].T
                self._mirrored = True
            return self._sum

    @property
    def diagonal(self) -> Tensor:
        """Summed squares per input column."""
        return self._sum.diagonal()

    def scaled(self, factors: Tensor) -> Moment:
        """The moment of inputs multiplied by ``factors`` (columns,)."""
        moment = Moment.__new__(Moment)
        moment._sum, moment._mirrored = self.matrix * factors[:, None] * factors, True
        moment.count, moment._factors, moment._lock = self.count, {}, RLock()
        return moment

    def blocks(self, group: int) -> Tensor:
        """Diagonal blocks (groups, group, group); the tail is filled with zeros."""
        import torch

        columns = len(self.matrix)
        groups = -(-columns // group)
        blocks = torch.zeros(groups, group, group)
        for index in range(groups):
            part = self.matrix[index * group : (index + 1) * group, index * group : (index + 1) * group]
            blocks[index, : len(part), : len(part)] = part
        return blocks

    def factor(self, damping: float, ordered: bool) -> tuple[Tensor, Tensor]:
        """An order of the columns, and upper triangular U with U U^T = the damped moment in that order.

        Args:
            damping: share of the mean diagonal that is added to the diagonal; tenfold more, and again, where rounding
                leaves the matrix indefinite.
            ordered: columns with the largest inputs first; else as they stand.
        """
        key = (damping, ordered)
        with self._lock:
            if key not in self._factors:
                self._factors.clear()
                self._factors[key] = self._factored(damping, ordered)
            return self._factors[key]

    def _factored(self, damping: float, ordered: bool) -> tuple[Tensor, Tensor]:
        import torch

        columns = len(self.matrix)
        order = torch.argsort(self.diagonal, descending=True, stable=True) if ordered else torch.arange(columns)
        mean = float(self.diagonal.mean()) or 1.0  # inputs that were all 0 leave nothing to take a share of
        # Cholesky gives L L^T; the factor of the reversed matrix, reversed back, is the upper triangular U of U U^T
        reverse = order.flip(0)
        for _ in range(5):
            damped = self.matrix[reverse][:, reverse]
            damped.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not int(failed):
                return order, lower.flip(0, 1)
            # rounding of a nearly singular matrix; ten thousand times the damping is more than any finite one needs
            damping *= 10
        raise ValueError("the second moment of a layer's inputs is not finite")


def output_error(change: Tensor, moment: Moment | None) -> Tensor:
    """Summed squared output error of every row (rows,) of a weight change (rows, columns); unweighted without a moment."""
    import torch

    if moment is None:
        return change.square().sum(1)
    columns = change.shape[1]
    total = torch.zeros(len(change))
    for start in range(0, columns, ERROR_COLUMNS):
        stop = min(start + ERROR_COLUMNS, columns)
        mixed = change[:, start:stop] @ moment.matrix[start:stop, start:stop]
        if start:  # what lies above the diagonal block counts for its mirror image too
            mixed.addmm_(change[:, :start], moment.matrix[:start, start:stop], alpha=2)
        total += mixed.mul_(change[:, start:stop]).sum(1)
    return total
