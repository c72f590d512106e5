"""XVERSE-V-13B: a global view and tiles, rows and columns swapped as published; text split at <ImageHere>.

Source: xverse-ai/XVERSE-V-13B at 989da86, vxverse/processors/blip_processors.py, vxverse/models/vxverse_base.py and
eval_vqa.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from runtime_py.preprocess.base import ImageInputs, Layout, Message, at_most_one
from runtime_py.preprocess.extent import Extent
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise, resize
from runtime_py.preprocess.prompted import CountingProcessor
from runtime_py.preprocess.spliced import IMAGE, spliced_layout

GRIDS = frozenset(
    [(1, columns) for columns in range(1, 10)]
    + [(2, columns) for columns in range(1, 5)]
    + [(3, columns) for columns in range(1, 4)]
    + [(4, 1), (4, 2), *((rows, 1) for rows in range(5, 10))]
)
"""The (rows, columns) of tiles the model was trained with."""


class Processor(CountingProcessor):
    """One picture a conversation: its overview and tiles are the images of one call, (views, 3, side, side)."""

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        at_most_one(pictures, "one: the published code misplaces the tiles of several")
        inputs = []
        for source, picture in enumerate(pictures):
            views = self._views(picture)
            inputs.append(ImageInputs({"pixel_values": views}, {}, len(views) * self.settings["tile_rows"], source))
        return inputs

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`."""
        tile, per_view = self.settings["tile"], self.settings["tile_rows"]
        rows, columns = tile_grid(width, height, tile)
        views = 1 if (rows, columns) == (1, 1) else 1 + rows * columns
        return Extent(views * tile * tile, per_view, views * per_view)

    def _views(self, picture: np.ndarray) -> np.ndarray:
        """Global view, then the tiles row by row: float32 (1 to 10, 3, tile, tile)."""
        tile = self.settings["tile"]
        views = [normalise(resize(picture, tile, tile), CLIP_MEAN, CLIP_STD)]
        rows, columns = tile_grid(picture.shape[1], picture.shape[0], tile)
        if (rows, columns) != (1, 1):
            canvas = normalise(resize(picture, columns * tile, rows * tile), CLIP_MEAN, CLIP_STD)
            views.append(canvas.reshape(3, rows, tile, columns, tile).transpose(1, 3, 0, 2, 4).reshape(-1, 3, tile, tile))
        return np.ascontiguousarray(np.concatenate(views))

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        return self.prompt.encode(messages, {image.source: [[IMAGE]] for image in images})

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids, rows = spliced_layout(input_ids, [piece.rows for piece in images])
        return Layout(ids, rows, self.counted(ids.shape[1]))


def tile_grid(width: int, height: int, tile: int) -> tuple[int, int]:
    """(rows, columns) of tiles. Rows come from the width and columns from the height: the published code swaps them."""
    rows, columns = (max(_round_half_down(side / tile), 1) for side in (width, height))
    if (rows, columns) in GRIDS:
        return rows, columns
    if 1 in (rows, columns):
        return (9, 1) if columns == 1 else (1, 9)
    if 2 in (rows, columns):
        return (2, 4) if rows == 2 else (4, 2)
    return 3, 3


def _round_half_down(value: float) -> int:
    whole = math.floor(value)
    return whole + int(value - whole > 0.5)
