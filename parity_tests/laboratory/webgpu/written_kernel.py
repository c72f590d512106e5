"""The provider's kernel for several rows written down in NumPy, with its two faults to be switched on and off.

Source: microsoft/onnxruntime, onnxruntime/contrib_ops/webgpu/bert/flash_attention.wgsl.template as onnxruntime-webgpu 1.27.0
holds it. docs/targets/webgpu.md tells what is wrong with it and how that was found.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime_py.backends.attention_trial import HEADS, ROWS, WIDTH, Trial

SCORED = 8
"""Keys that the kernel scores in a step where subgroups have no more lanes."""


WRITTEN = {
    "neither fault": (SCORED, True),
    "4 lanes": (4, True),
    "variables not cleared": (SCORED, False),
    "4 lanes and variables not cleared": (4, False),
}
"""Name to lanes and whether variables are cleared."""


def differences(trial: Trial, given: np.ndarray) -> list[tuple[str, float]]:
    """How far what a provider gives for the first trial is from the written kernel, over the largest value."""
    largest = np.abs(trial.expected).max()
    return [
        (name, float(np.abs(given - attention(trial.feeds, *faults)).max() / largest)) for name, faults in WRITTEN.items()
    ]


def attention(feeds: Mapping[str, np.ndarray], lanes: int = 4, cleared: bool = False) -> np.ndarray:
    """What the kernel gives for `runtime_py.backends.attention_trial.trials`' first: (1, ROWS, HEADS * WIDTH).

    Args:
        lanes: of a subgroup: so many keys are taken a step. Below `SCORED`, lanes that are not there give zeros, whose
            scores count.
        cleared: scores begin at 0 in every step, as WGSL has it; else at what the last step left in their variables.
    """
    query, key, value = (feeds[name].reshape(ROWS, HEADS, WIDTH) for name in ("query", "key", "value"))
    out = np.zeros((ROWS, HEADS, WIDTH))
    for head in range(HEADS):
        out[:, head] = _head(query[:, head], key[:, head], value[:, head], lanes, cleared)
    return out.reshape(1, ROWS, HEADS * WIDTH)


def _head(query: np.ndarray, key: np.ndarray, value: np.ndarray, lanes: int, cleared: bool) -> np.ndarray:
    scored = max(SCORED, lanes)
    out, highest, total, left = np.zeros((ROWS, WIDTH)), np.full(ROWS, -np.inf), np.zeros(ROWS), np.zeros((ROWS, scored))
    for start in range(0, ROWS, lanes):
        keys, values = np.zeros((scored, WIDTH)), np.zeros((scored, WIDTH))
        taken = min(lanes, ROWS - start)
        keys[:taken], values[:taken] = key[start : start + taken], value[start : start + taken]
        scores = query @ keys.T / np.sqrt(WIDTH) + (0 if cleared else left)
        scores[:, np.arange(start, start + scored) >= ROWS] = -np.inf
        now = np.maximum(highest, scores.max(1))
        weights, kept = np.exp(scores - now[:, None]), total * np.exp(highest - now)
        total = kept + weights.sum(1)
        left = weights / total[:, None]
        out, highest = out * (kept / total)[:, None] + left @ values, now
    return out
