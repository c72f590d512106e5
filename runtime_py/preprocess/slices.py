"""Aspect-keeping slices of MiniCPM-V 2.0: an overview, and a grid of cells cut from one resized sheet.

Source: modeling_minicpmv.py of the 2.0 hub files (``slice_image``, ``get_refine_size``, ``split_to_patches``; copy in
bokesyo/minicpm-v-embedding-model, src/openmatch/modeling/modeling_minicpmv).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime_py.preprocess.pixels import resize

Size = tuple[int, int]
"""(width, height) in pixels, or (columns, rows) of a grid."""


@dataclass(frozen=True)
class SliceRule:
    """``side`` * ``side`` pixels a piece, both sides multiples of ``patch``, at most ``limit`` cells."""

    side: int
    patch: int
    limit: int


@dataclass(frozen=True)
class SlicePlan:
    """Size of the overview, the grid as (columns, rows), size of one cell; grid (0, 0) when there are no cells."""

    overview: Size
    grid: Size
    cell: Size


def plan(width: int, height: int, rule: SliceRule) -> SlicePlan:
    """How a picture of this size is sliced."""
    count = min(math.ceil(width * height / rule.side**2), rule.limit)
    if count <= 1:
        return SlicePlan(fit(width, height, rule, upscale=True), (0, 0), (0, 0))
    columns, rows = best_grid(width, height, count, rule.limit)
    cell = fit(nearest_multiple(width, columns) / columns, nearest_multiple(height, rows) / rows, rule, upscale=True)
    return SlicePlan(fit(width, height, rule, upscale=False), (columns, rows), cell)


def cut(picture: np.ndarray, rule: SliceRule) -> tuple[list[np.ndarray], Size]:
    """Overview first, then the cells row by row, uint8 RGB (height, width, 3) each; and the grid."""
    chosen = plan(picture.shape[1], picture.shape[0], rule)
    pieces = [resize(picture, *chosen.overview)]
    (columns, rows), (width, height) = chosen.grid, chosen.cell
    if columns:
        sheet = resize(picture, columns * width, rows * height)
        pieces += [
            sheet[r * height : (r + 1) * height, c * width : (c + 1) * width] for r in range(rows) for c in range(columns)
        ]
    return pieces, chosen.grid


def fit(width: float, height: float, rule: SliceRule, upscale: bool) -> Size:
    """(width, height) of about side * side pixels, both multiples of the patch (Python's round: half to even)."""
    if width * height > rule.side**2 or upscale:
        ratio = width / height
        height = int(rule.side / math.sqrt(ratio))
        width = int(height * ratio)
    return nearest_multiple(width, rule.patch), nearest_multiple(height, rule.patch)


def nearest_multiple(length: float, parts: int) -> int:
    """The multiple of ``parts`` nearest to ``length``, at least one."""
    return max(round(length / parts) * parts, parts)


def best_grid(width: int, height: int, count: int, limit: int) -> Size:
    """(columns, rows) among the factorisations of count - 1, count, count + 1 nearest to the picture's aspect."""
    wanted = math.log(width / height)
    best, error = (1, 1), math.inf
    for total in (count - 1, count, count + 1):
        if total == 1 or total > limit:
            continue
        for columns in range(1, total + 1):
            if total % columns == 0:
                rows = total // columns
                distance = abs(wanted - math.log(columns / rows))
                if distance < error:
                    best, error = (columns, rows), distance
    return best
