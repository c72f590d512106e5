"""WeMM Chat: resize by the longer side, pad to whole patches, bucketed positions, one image block.

Sources: Ascend/MindIE-LLM atb_llm/models/wemm/{image_processor_2k,data_preprocess_wemm,router_wemm}.py; transformers v4.40.0
models/idefics2/{image_processing,modeling}_idefics2.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from runtime_py.preprocess.base import ImageInputs, Layout, Message, at_most_one
from runtime_py.preprocess.extent import Extent
from runtime_py.preprocess.pixels import HALF, normalise, resize
from runtime_py.preprocess.prompted import CountingProcessor
from runtime_py.preprocess.spliced import IMAGE, spliced_layout


class Processor(CountingProcessor):
    """One picture a conversation, in its own aspect: patches of any grid, with the positions of their buckets."""

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        at_most_one(pictures)
        return [self._inputs(picture, source) for source, picture in enumerate(pictures)]

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`."""
        patch, kernel = self.settings["patch_size"], self.settings["kernel"]
        rows, columns = (-(-side // patch) for side in self._size(width, height))
        return Extent(rows * columns * patch**2, rows * columns, -(-rows // kernel) * -(-columns // kernel) + 2)

    def _size(self, width: int, height: int) -> tuple[int, int]:
        edges = (self.settings["shortest_edge"], self.settings["longest_edge"])
        return target_size(width, height, *edges, self.settings["resize_rule"] == "2k")

    def _inputs(self, picture: np.ndarray, source: int) -> ImageInputs:
        settings = self.settings
        width, height = self._size(picture.shape[1], picture.shape[0])
        pixels = normalise(resize(picture, width, height, Image.Resampling.BILINEAR), HALF, HALF)
        patch, kernel = settings["patch_size"], settings["kernel"]
        rows, columns = -(-height // patch), -(-width // patch)
        padding = ((0, 0), (0, 0), (0, rows * patch - height), (0, columns * patch - width))
        vision = {
            "pixel_values": np.pad(pixels, padding),
            "patch_positions": bucket_positions(rows, columns, settings["side"]),
        }
        windows = window_index(rows, columns, kernel)
        return ImageInputs(vision, {"window_index": windows}, len(windows) + 2, source)

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        return self.prompt.encode(messages, {image.source: [[IMAGE]] for image in images})

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids, rows = spliced_layout(input_ids, [piece.rows for piece in images])
        return Layout(ids, rows, {**self.counted(ids.shape[1]), "image_mask": rows[None]})

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        return {**super().next_inputs(layout, length), "image_mask": np.zeros((1, 1), dtype=bool)}

    def arrange(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The image mask of one call to the rows that get a delta, and for each token which delta."""
        mask = inputs["image_mask"][0]
        rows = np.flatnonzero(mask)
        delta = np.full(len(mask), len(rows), dtype=np.int64)
        delta[rows] = np.arange(len(rows))
        rest = {name: value for name, value in inputs.items() if name != "image_mask"}
        return rest | {"image_index": rows, "delta_index": delta}


def target_size(width: int, height: int, shortest: int, longest: int, enlarge: bool) -> tuple[int, int]:
    """(width, height): the longer side at most (``enlarge``: exactly) ``longest``, then both at least ``shortest``."""
    ratio = width / height
    if width >= height and (enlarge or width > longest):
        width, height = longest, int(longest / ratio)
    elif height > width and (enlarge or height > longest):
        width, height = int(longest * ratio), longest
    return max(width, shortest), max(height, shortest)


def buckets(count: int, side: int) -> np.ndarray:
    """Which of ``side`` table rows each of ``count`` patches along an axis takes; float32 as published.

    The published tower counts patches in a tensor, so that the step between places is rounded to float32 too
    (transformers 4.40, models/idefics2/modeling_idefics2.py); 25 of 70 and 116 of 140 are counts where that shows.
    """
    boundaries = _vector_range(1 / side, 1 / side, side - 1)
    places = _vector_range(0.0, float(np.float32(1) / np.float32(count)), count)
    return np.searchsorted(boundaries, places, side="right").astype(np.int64)


def _vector_range(start: float, step: float, count: int) -> np.ndarray:
    """float32 ``torch.arange``: eight at a time, each block from a base that is rounded first.

    Rounding each value alone puts a few places on the other side of a boundary (patch 55 of 77 in a table of 140).
    """
    lanes = 8
    index = np.arange(count)
    base = index // lanes * lanes
    rounded = (start + step * base).astype(np.float32).astype(np.float64)
    vectors = (rounded + (index - base) * step).astype(np.float32)
    rest = (start + step * index).astype(np.float32)
    return np.where(index < count // lanes * lanes, vectors, rest)


def bucket_positions(rows: int, columns: int, side: int) -> np.ndarray:
    """int64 (rows * columns,) position ids in a side x side table."""
    return (buckets(rows, side)[:, None] * side + buckets(columns, side)[None, :]).reshape(-1)


def window_index(rows: int, columns: int, kernel: int) -> np.ndarray:
    """int64 (cells, kernel * kernel) patch of each window place; the last row and column repeat to fill windows."""
    cell_rows, cell_columns = -(-rows // kernel), -(-columns // kernel)
    row = np.minimum(np.arange(cell_rows * kernel), rows - 1).reshape(cell_rows, kernel)
    column = np.minimum(np.arange(cell_columns * kernel), columns - 1).reshape(cell_columns, kernel)
    index = row[:, None, :, None] * columns + column[None, :, None, :]
    return index.reshape(-1, kernel * kernel).astype(np.int64)
