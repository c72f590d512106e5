"""Prompts in which one id, -200, stands for a whole picture (WeMM, XVERSE-V)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime_py.errors import UsageError

IMAGE = -200
"""The id of a picture in published-form ids; it never reaches the embedding table."""

PLACEHOLDER = 0
"""The id whose embedding the picture's rows replace."""


def spliced_layout(input_ids: np.ndarray, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Expand each -200 of (1, tokens) ids to its picture's row count; int64 (1, longer) ids and the bool row mask."""
    ids = np.asarray(input_ids, dtype=np.int64)
    places = np.flatnonzero(ids[0] == IMAGE)
    if len(places) != len(rows):
        raise UsageError(
            f"the prompt has {len(places)} image places for {len(rows)} pictures", "one each", "rebuild the prompt"
        )
    counts = np.ones(ids.shape[1], dtype=np.int64)
    counts[places] = rows
    long = np.repeat(ids[0], counts)
    image_rows = long == IMAGE
    return np.where(image_rows, PLACEHOLDER, long)[None], image_rows
