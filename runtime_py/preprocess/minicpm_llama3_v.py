"""MiniCPM-Llama3-V 2.5: slices as in 2.0, positions along one row.

The published code unfolds every piece into patches and hands the tower one row of them, so a patch's position is its place
in the piece, read row by row, spread over the first row of the table; where it lies in the picture enters with the
resampler's keys alone. Pieces are encoded one at a time, as the published code does with ``batch_vision_input`` false;
docs/families/minicpm-llama3-v.md says what its padded batch does otherwise. Sources: modeling_minicpmv.py and
resampler.py of openbmb/MiniCPM-Llama3-V-2_5, kept in theonlyengine/VQA_Model; transformers v4.40.0
models/idefics2/modeling_idefics2.py (``Idefics2VisionEmbeddings``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime_py.preprocess import minicpm_v
from runtime_py.preprocess.base import ImageInputs
from runtime_py.preprocess.extent import Extent
from runtime_py.preprocess.pixels import HALF, normalise
from runtime_py.preprocess.resample import sine_table
from runtime_py.preprocess.slices import SliceRule, cut


class Processor(minicpm_v.Processor):
    """Pieces of any grid, each a row of patches of its own length.

    What stands for a picture in the prompt, and where its rows lie, is as in MiniCPM-V 1.0 and 2.0.
    """

    def slice_rule(self) -> SliceRule:
        return SliceRule(self.settings["image_size"], self.settings["patch_size"], self.settings["max_slices"])

    def extent(self, width: int, height: int) -> Extent:
        return minicpm_v.sliced_extent(width, height, self.slice_rule(), self.settings)

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        inputs = []
        for source, picture in enumerate(pictures):
            pieces, grid = cut(picture, self.slice_rule())
            inputs += [self._inputs(piece, source, grid) for piece in pieces]
        return inputs

    def _inputs(self, piece: np.ndarray, source: int, grid: tuple[int, int]) -> ImageInputs:
        rows, columns = (side // self.settings["patch_size"] for side in piece.shape[:2])
        vision = {
            "pixel_values": normalise(piece, HALF, HALF),
            "patch_positions": row_positions(rows * columns, self.settings["side"]),
        }
        connector = {"key_positions": sine_table(rows, columns, self.settings["width"])}
        return ImageInputs(vision, connector, self.settings["queries"], source, {"grid": np.array(grid)})


def row_positions(count: int, side: int) -> np.ndarray:
    """int64 (count,) rows of a side x side table for one row of patches: their bucket among ``side``, on table row 0.

    The published step is one over a count that is a tensor, so float32; the boundaries' step is a Python number.
    """
    boundaries = float32_range(1 / side, 1 / side, side - 1)
    places = float32_range(0.0, float(np.float32(1) / np.float32(count)), count)
    return np.searchsorted(boundaries, places, side="right").astype(np.int64)


def float32_range(start: float, step: float, count: int) -> np.ndarray:
    """What ``torch.arange`` gives on a CPU with vectors of eight: each block's first value is rounded, then added to; the
    values after the last whole block are rounded one by one.
    """
    index = np.arange(count)
    first = index - index % 8
    in_blocks = (start + first * step).astype(np.float32) + (index - first) * step
    return np.where(first + 8 <= count, in_blocks, start + index * step).astype(np.float32)
