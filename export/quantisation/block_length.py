"""Which block lengths divide a layer's columns, and what a layer takes in a file, codes and scales and padding together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage

AUTO = "auto"
"""Stands for the largest permitted length that divides a layer's columns, layer by layer."""


def largest_dividing(columns: Iterable[int], lengths: Iterable[object]) -> int | None:
    """The largest of the lengths that divides all the columns; None when none does. Words among the lengths are left out."""
    wanted = tuple(columns)
    fitting = [length for length in _numbers(lengths) if not any(count % length for count in wanted)]
    return max(fitting, default=None)


def length_for(columns: int, asked: int | str, lengths: Sequence[object]) -> int:
    """The block length of one layer: as asked, or by `AUTO` the largest that divides, else the one that pads least."""
    if isinstance(asked, int):
        return asked
    return largest_dividing([columns], lengths) or min(_numbers(lengths), key=lambda length: (-columns % length, -length))


def _numbers(lengths: Iterable[object]) -> list[int]:
    return [length for length in lengths if isinstance(length, int)]


def padded_columns(assignment: Assignment) -> int:
    """Columns that a file holds beyond the layer's own, so that the last block is full."""
    group = GRIDS[assignment.grid].group if assignment.grid else 0
    return -assignment.layer.columns % group if group else 0


def stored_bytes(assignment: Assignment) -> int:
    """Bytes of a layer's weights as stored: codes, scales and zero points, or plain floats."""
    rows, columns = assignment.layer.rows, assignment.layer.columns
    if not assignment.grid:
        return rows * columns * (2 if assignment.storage is Storage.FP16 else 4)
    grid = GRIDS[assignment.grid]
    groups = -(-columns // (grid.group or columns))
    padded = groups * (grid.group or columns)
    return rows * (padded * grid.bits // 8 + 2 * groups + (groups * grid.bits // 8 if grid.zero_points else 0))
