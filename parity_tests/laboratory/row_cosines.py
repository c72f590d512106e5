"""How alike rows of numbers are, token by token."""

from __future__ import annotations

import numpy as np


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of every row of (..., width) arrays, float64 (rows,)."""
    left, right = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (left, right))
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
