"""Qwen2-VL's patches: the size rule, the order patches come in, and their rotary angles.

Source: transformers 4.45 and 5.24, models/qwen2_vl/{image_processing,modeling}_qwen2_vl.py.
"""

from __future__ import annotations

import math

import numpy as np

from runtime_py.errors import ImageError


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width), multiples of ``factor``, between the two areas, aspect kept as well as that allows.

    A side below ``factor``, which 4.45 refuses, is made longer, as later releases do (5.24,
    models/qwen2_vl/image_processing_qwen2_vl.py).
    """
    if max(height, width) / min(height, width) > 200:
        raise ImageError(f"a picture of {width} x {height}", "an aspect of at most 200", "use another picture")
    # Python's round, halves to even, as published
    rounded = (round(height / factor) * factor, round(width / factor) * factor)
    if rounded[0] * rounded[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))  # type: ignore[return-value]
    if rounded[0] * rounded[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))  # type: ignore[return-value]
    return rounded


def flatten_patches(pixels: np.ndarray, patch: int, merge: int, temporal: int) -> np.ndarray:
    """(frames, 3, height, width) to (frames / temporal, patches, 3 * temporal * patch * patch).

    Patches come in blocks of merge x merge, blocks row-major; a patch's values in the order channel, time, row, column.
    A single frame is repeated to fill its slice.
    """
    if len(pixels) < temporal:
        pixels = np.repeat(pixels, temporal, axis=0)
    frames, channels, height, width = pixels.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    grid = pixels.reshape(frames // temporal, temporal, channels, rows, merge, patch, columns, merge, patch)
    order = grid.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return np.ascontiguousarray(order.reshape(frames // temporal, rows * columns * merge * merge, -1))


def rotary_angles(rows: int, columns: int, merge: int, head_dim: int) -> np.ndarray:
    """float32 (rows * columns, head_dim / 2): row angles, then column angles, patches in block order."""
    quarter = head_dim // 4
    frequencies = (1.0 / 10000.0 ** (np.arange(quarter, dtype=np.float32) * 2 / (head_dim // 2))).astype(np.float32)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")

    def in_blocks(axis: np.ndarray) -> np.ndarray:
        blocks = axis.reshape(rows // merge, merge, columns // merge, merge)
        return blocks.transpose(0, 2, 1, 3).reshape(-1).astype(np.float32)

    return np.concatenate([in_blocks(row)[:, None] * frequencies, in_blocks(column)[:, None] * frequencies], axis=1)
