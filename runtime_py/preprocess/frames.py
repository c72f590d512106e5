"""Video frames: which to take, and the float resizing that published video code applies after normalising.

Sources: THUDM/CogVLM2 video_demo/inference.py; pytorchvideo 0.1.5 transforms/functional.py; torchvision
transforms/_functional_video.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def frame_per_second(timestamps: Sequence[float], limit: int) -> list[int]:
    """One frame a second from second 0: the one whose start is nearest, the first on ties; no padding."""
    starts = np.asarray(timestamps, dtype=np.float64)
    if not len(starts):
        return []
    chosen: list[int] = []
    for second in range(round(float(starts[-1])) + 1):
        if len(chosen) == limit:
            break
        chosen.append(int(np.argmin(np.abs(starts - second))))
    return chosen


def spread_frames(count: int, frames_per_second: float, limit: int) -> list[int]:
    """``limit`` indices spread evenly over the first 60 seconds; short clips repeat frames."""
    last = min(count, int(60 * frames_per_second)) - 1
    return [int(index) for index in np.linspace(0, last, limit, dtype=int)]


def bilinear_matrix(size_in: int, size_out: int, scale: float) -> np.ndarray:
    """float32 (size_out, size_in) bilinear weights without antialias, half-pixel centres; ``scale`` is in / out.

    Scale and centres are float32, as in torch (fused multiply and subtract): in float64 pixels move by up to 1e-5.
    """
    rounded_scale = np.float64(np.float32(scale))
    centres = np.maximum(rounded_scale * (np.arange(size_out) + 0.5) - 0.5, 0.0).astype(np.float32)
    low = np.minimum(centres.astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    share = centres - low.astype(np.float32)
    matrix = np.zeros((size_out, size_in), dtype=np.float32)
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, high), share)
    return matrix


def scaled_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``size`` and the other at its floor."""
    if width < height:
        return int(np.floor(height / width * size)), size
    return size, int(np.floor(width / height * size))


def shortest_side_bilinear(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale (frames, 3, height, width) floats so that the shorter side is ``size`` and the other its floor."""
    height, width = pixels.shape[2:]
    new_height, new_width = scaled_sides(height, width, size)
    rows = bilinear_matrix(height, new_height, height / new_height)
    columns = bilinear_matrix(width, new_width, width / new_width)
    return np.einsum("yh,nchw,xw->ncyx", rows, pixels, columns, optimize=True).astype(np.float32)


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Cut the centre square; offsets round half to even."""
    height, width = pixels.shape[2:]
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return np.ascontiguousarray(pixels[:, :, top : top + size, left : left + size])
