"""MiniCPM-V 1.0 and 2.0: squash or slice, and placeholder rows.

1.0 squashes the picture to one square; 2.0 keeps its aspect and adds slices. Source: modeling_minicpmv.py of the 1.0 and 2.0
hub files, ``chat`` and ``get_slice_image_placeholder`` (see docs/families/minicpm-v.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, TokenizerLike
from runtime_py.preprocess.extent import FLOAT_BYTES, MATRIX_BYTES, Extent, square_extent
from runtime_py.preprocess.pixels import HALF, kernel, normalise, resize
from runtime_py.preprocess.prompted import CountingProcessor
from runtime_py.preprocess.resample import antialiased_bicubic, sine_table
from runtime_py.preprocess.slices import SliceRule, cut, plan
from runtime_py.prompt.render import grid_text, picture_text

SINE_BYTES = 12
"""A number of one axis's sines, beside the table made of them: angles, sines and cosines in float64 at one time."""


class Processor(CountingProcessor):
    """A picture is one square piece (1.0), or an overview and its slices (2.0); every piece gives ``queries`` rows."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        super().__init__(settings, tokenizer)
        self.sliced = settings["variant"] == "2.0"

    def slice_rule(self) -> SliceRule:
        """How pictures are cut up."""
        return SliceRule(self.settings["scale_resolution"], self.settings["patch_size"], self.settings["max_slices"])

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`."""
        if self.sliced:
            return sliced_extent(width, height, self.slice_rule(), self.settings)
        return square_extent(self.settings["image_size"], self.settings["patch_size"], self.settings["queries"])

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        inputs = []
        for source, picture in enumerate(pictures):
            if self.sliced:
                pieces, grid = cut(picture, self.slice_rule())
            else:
                size = self.settings["image_size"]
                pieces, grid = [resize(picture, size, size, kernel(self.settings))], (0, 0)
            inputs += [self._inputs(piece, source, grid) for piece in pieces]
        return inputs

    def _inputs(self, piece: np.ndarray, source: int, grid: tuple[int, int]) -> ImageInputs:
        vision: dict[str, np.ndarray] = {"pixel_values": normalise(piece, HALF, HALF)}
        connector: dict[str, np.ndarray] = {}
        if self.sliced:
            patch, native = self.settings["patch_size"], self.settings["native_grid"]
            rows, columns = piece.shape[0] // patch, piece.shape[1] // patch
            vision["row_weights"] = position_matrix(native, rows, (rows, columns))
            vision["column_weights"] = position_matrix(native, columns, (rows, columns))
            connector["key_positions"] = sine_table(rows, columns, self.settings["width"])
        return ImageInputs(vision, connector, self.settings["queries"], source, {"grid": np.array(grid)})

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        form, blocks = self.prompt.form, {}
        for source in dict.fromkeys(image.source for image in images):
            pieces = [image for image in images if image.source == source]
            texts = [picture_text(form, piece.rows) for piece in pieces]
            columns, slices = int(pieces[0].state["grid"][0]), form.picture.slices
            cells = grid_text(slices, texts[1:], columns) if columns and slices is not None else ""
            blocks[source] = [texts[0] + cells]
        return self.prompt.encode(messages, blocks)

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = np.zeros(ids.shape[1], dtype=bool)
        starts = np.flatnonzero(ids[0] == self.prompt.id("<image>")) + 1
        ends = np.flatnonzero(ids[0] == self.prompt.id("</image>"))
        if len(starts) != len(ends) or len(starts) != len(images):
            raise UsageError(
                f"the prompt has {len(starts)} image start and {len(ends)} image end tokens for {len(images)} image pieces",
                "one <image> ... </image> pair per picture or slice",
                "pass the pictures the prompt speaks of, and leave these marks out of the text",
            )
        for start, end, piece in zip(starts, ends, images, strict=True):
            if end - start != piece.rows:
                raise UsageError(
                    f"{end - start} placeholder tokens between <image> and </image>", f"{piece.rows}", "rebuild the prompt"
                )
            rows[start:end] = True
        return Layout(ids, rows, self.counted(ids.shape[1]))


def sliced_extent(width: int, height: int, rule: SliceRule, settings: Mapping[str, Any]) -> Extent:
    """What a picture becomes under a slicing rule: its pieces, and fresh key positions for each of them."""
    chosen = plan(width, height, rule)
    cells = chosen.grid[0] * chosen.grid[1]
    overview, cell = (size[0] * size[1] for size in (chosen.overview, chosen.cell))
    pixels = overview + cells * cell
    longest = max(overview, cell) // rule.patch**2
    side = max(*chosen.overview, *chosen.cell) // rule.patch
    positions = (pixels // rule.patch**2 * FLOAT_BYTES + side * SINE_BYTES) * settings["width"]
    matrices = (1 + cells) * sum(chosen.overview) // rule.patch * settings.get("native_grid", 0) * MATRIX_BYTES
    return Extent(pixels, longest, (1 + cells) * settings["queries"], positions + matrices)


def position_matrix(native: int, size: int, grid: tuple[int, int]) -> np.ndarray:
    """float32 (size, native) resampling matrix; the identity when the whole grid is the native square."""
    if grid == (native, native):
        return np.eye(native, dtype=np.float32)
    return antialiased_bicubic(native, size).astype(np.float32)
