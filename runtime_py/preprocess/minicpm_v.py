"""MiniCPM-V 1.0 and 2.0: squash or slice, prompt, placeholder rows.

Source: modeling_minicpmv.py of the 1.0 and 2.0 hub files (see docs/families/minicpm-v.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, TokenizerLike
from runtime_py.preprocess.resample import antialiased_bicubic, sine_table


class Processor:
    """See runtime_py.preprocess.base.Processor; ``settings`` come from export/families/minicpm_v."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        self.settings = settings
        self.tokens: Mapping[str, int] = settings["tokens"]
        self.tokenizer = tokenizer
        self.sliced = settings["variant"] == "2.0"

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        found = []
        for source, picture in enumerate(pictures):
            pieces = self.slices(picture)[0] if self.sliced else [self._squash(picture)]
            found += [self._inputs(piece, source) for piece in pieces]
        return found

    def _squash(self, picture: np.ndarray) -> np.ndarray:
        size = self.settings["image_size"]
        return resize(picture, size, size)

    def slices(self, picture: np.ndarray) -> tuple[list[np.ndarray], tuple[int, int]]:
        """Overview first, then the grid row by row, and the grid as (columns, rows); (0, 0) when there is none."""
        side, patch = self.settings["scale_resolution"], self.settings["patch_size"]
        height, width = picture.shape[:2]
        count = min(math.ceil(width * height / side**2), self.settings["max_slices"])
        if count <= 1:
            return [resize(picture, *fit(width, height, side, patch, True))], (0, 0)
        overview = resize(picture, *fit(width, height, side, patch, False))
        columns, rows = best_grid(width, height, count, self.settings["max_slices"])
        cell = fit(nearest_multiple(width, columns) / columns, nearest_multiple(height, rows) / rows, side, patch, True)
        sheet = resize(picture, columns * cell[0], rows * cell[1])
        cells = [
            sheet[r * cell[1] : (r + 1) * cell[1], c * cell[0] : (c + 1) * cell[0]]
            for r in range(rows)
            for c in range(columns)
        ]
        return [overview, *cells], (columns, rows)

    def _inputs(self, piece: np.ndarray, source: int) -> ImageInputs:
        pixels = ((piece.astype(np.float32) / 255.0 - 0.5) / 0.5).transpose(2, 0, 1)[None]
        vision: dict[str, np.ndarray] = {"pixel_values": np.ascontiguousarray(pixels, dtype=np.float32)}
        connector: dict[str, np.ndarray] = {}
        if self.sliced:
            patch, native = self.settings["patch_size"], self.settings["native_grid"]
            rows, columns = piece.shape[0] // patch, piece.shape[1] // patch
            vision["row_weights"] = position_matrix(native, rows, (rows, columns))
            vision["column_weights"] = position_matrix(native, columns, (rows, columns))
            connector["key_positions"] = sine_table(rows, columns, self.settings["width"])
        return ImageInputs(vision, connector, self.settings["queries"], source)

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        raise UsageError("no tokenizer", "tokenizer", "encode is written by the runtime")

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = np.zeros(ids.shape[1], dtype=bool)
        starts = np.flatnonzero(ids[0] == self.tokens["image_start"]) + 1
        ends = np.flatnonzero(ids[0] == self.tokens["image_end"])
        if len(starts) != len(ends) or len(starts) != len(images):
            raise UsageError(
                f"the prompt has {len(starts)} image start and {len(ends)} image end tokens for {len(images)} image pieces",
                "one <image> ... </image> pair per picture or slice",
                "pass the pictures the prompt speaks of",
            )
        for start, end, piece in zip(starts, ends, images, strict=True):
            if end - start != piece.rows:
                raise UsageError(
                    f"{end - start} placeholder tokens between <image> and </image>", f"{piece.rows}", "rebuild the prompt"
                )
            rows[start:end] = True
        return Layout(ids, rows, {"position_ids": np.arange(ids.shape[1], dtype=np.int64)[None]})

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        return {"position_ids": np.array([[length]], dtype=np.int64)}


def resize(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """PIL bicubic on uint8 RGB (height, width, 3)."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def position_matrix(native: int, size: int, grid: tuple[int, int]) -> np.ndarray:
    """float32 (size, native) resampling matrix; the identity when the whole grid is the native square."""
    if grid == (native, native):
        return np.eye(native, dtype=np.float32)
    return antialiased_bicubic(native, size).astype(np.float32)


def fit(width: float, height: float, side: int, patch: int, upscale: bool) -> tuple[int, int]:
    """(width, height) of about side * side pixels, both multiples of the patch."""
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return max(round(width / patch) * patch, patch), max(round(height / patch) * patch, patch)


def nearest_multiple(length: int, parts: int) -> int:
    return max(round(length / parts) * parts, parts)


def best_grid(width: int, height: int, count: int, limit: int) -> tuple[int, int]:
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
