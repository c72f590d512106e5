"""Drawn pictures and short questions, the same on every machine: a package's self-test, and what its check asks first."""

from __future__ import annotations

import numpy as np


def drawn_pictures() -> tuple[np.ndarray, ...]:
    """Two uint8 RGB pictures: a wide one with a red disc on a gradient, a tall one with stripes and noise."""
    rows, columns = np.mgrid[0:200, 0:320]
    wide = np.stack([columns * 255 // 319, rows * 255 // 199, np.full_like(rows, 90)], axis=-1).astype(np.uint8)
    wide[(rows - 90) ** 2 + (columns - 120) ** 2 < 60**2] = (220, 30, 30)
    rows, columns = np.mgrid[0:260, 0:150]
    stripes = np.where((rows // 13 + columns // 17) % 2 == 0, 235, 25)
    noise = np.random.default_rng(7).integers(0, 20, (260, 150, 3))
    tall = np.clip(stripes[..., None] + noise, 0, 255).astype(np.uint8)
    return wide, tall


PROMPTS = (
    ("wide", (0,), "What colour is the shape?"),
    ("tall", (1,), "图里有什么？"),
    ("text", (), "Count from one to five."),
)
"""Name, pictures by index, text."""
