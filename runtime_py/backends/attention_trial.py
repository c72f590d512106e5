"""Small attention operators with known answers, by which an execution provider's kernels are tried before they are trusted.

onnxruntime's WebGPU provider needs it: where its kernel for several rows goes through the keys in more than one step, 1.27.0
and the plugin 0.4.0 give other numbers than attention on some devices, without a word (docs/targets/webgpu.md says why).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 70
"""More than any kernel takes of keys in one step (64)."""

HEADS, KV_HEADS, WIDTH = 2, 1, 32
SPARE = 2
"""Positions of the cache behind those that are used."""

LIMITS = {np.dtype(np.float32): 1e-3, np.dtype(np.float16): 2e-2}
"""Of the largest value, by the dtype an operator computes in; right kernels are within 1e-5 in float32, wrong ones were 9 to
50 % off."""

Run = Callable[[bytes, Mapping[str, np.ndarray]], np.ndarray]
"""Runs a model on the provider under trial; its first output."""


@dataclass(frozen=True)
class Trial:
    """One operator: an ONNX model, what it is fed, and what it must give.

    Attributes:
        name: for people.
        expected: float64 (1, rows, heads * width).
        limit: of `error`.
    """

    name: str
    model: bytes
    feeds: Mapping[str, np.ndarray]
    expected: np.ndarray
    limit: float = LIMITS[np.dtype(np.float32)]

    def error(self, run: Run) -> float:
        """Largest difference over the largest value; infinite where the operator fails or gives no numbers."""
        try:
            given = run(self.model, self.feeds)
        except Exception:  # whatever onnxruntime raises: an operator that fails is no operator to trust
            return float("inf")
        return self.off(given)

    def off(self, given: np.ndarray) -> float:
        """The same of an output."""
        worst = float(np.abs(given.astype(np.float64) - self.expected).max() / np.abs(self.expected).max())
        return worst if np.isfinite(worst) else float("inf")


def trials() -> list[Trial]:
    """Attention over all rows; a prompt into an empty cache; one token behind a prompt."""
    return [_full(), cached(np.dtype(np.float32)), cached(np.dtype(np.float32), filled=ROWS, rows=1)]


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, behind: int | None) -> np.ndarray:
    """Softmax attention in float64.

    Args:
        query: (rows, heads, width).
        key, value: (positions, heads, width).
        behind: how many positions lie before the first row, which sees them and itself; None where all rows see all.
    """
    scores = np.einsum("rhw,phw->hrp", query, key) / np.sqrt(query.shape[2])
    if behind is not None:
        hidden = np.arange(key.shape[0]) > behind + np.arange(query.shape[0])[:, None]
        scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("hrp,phw->rhw", weights / weights.sum(axis=2, keepdims=True), value)


def _drawn(rows: int, heads: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, heads, WIDTH)).astype(np.float32)


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(1, rows.shape[0], -1)


def _full() -> Trial:
    rows = {name: _drawn(ROWS, HEADS, seed) for seed, name in enumerate(("query", "key", "value"))}
    feeds = {name: _flat(array) for name, array in rows.items()}
    model = _model("MultiHeadAttention", feeds, {"num_heads": HEADS})
    return Trial(
        f"{ROWS} rows that see each other", model, feeds, _flat(attention(rows["query"], rows["key"], rows["value"], None))
    )


def cached(kind: np.dtype, filled: int = 0, rows: int = ROWS) -> Trial:
    """``rows`` tokens behind ``filled`` ones of a cache, computed in float32 or float16."""
    total, capacity = filled + rows, filled + rows + SPARE
    query = _drawn(rows, HEADS, 3)
    keys, values = _drawn(total, KV_HEADS, 4), _drawn(total, KV_HEADS, 5)
    feeds = {"query": _flat(query), "key": _flat(keys[filled:]), "value": _flat(values[filled:])}
    for past, stored in (("past_key", keys), ("past_value", values)):
        feeds[past] = np.zeros((1, KV_HEADS, capacity, WIDTH), np.float32)
        feeds[past][0, :, :filled] = stored[:filled].transpose(1, 0, 2)
    feeds = {given: array.astype(kind) for given, array in feeds.items()}
    feeds |= {"last": np.array([total - 1], np.int32), "total": np.array([total], np.int32)}
    model = _model("GroupQueryAttention", feeds, {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 0})
    wide_keys, wide_values = (np.repeat(stored, HEADS // KV_HEADS, axis=1) for stored in (keys, values))
    name = f"{rows} row(s) behind {filled} in {kind}"
    return Trial(name, model, feeds, _flat(attention(query, wide_keys, wide_values, filled)), LIMITS[kind])


def _model(operator: str, feeds: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bytes:
    from onnx import helper

    element = helper.np_dtype_to_tensor_dtype
    inputs = [helper.make_tensor_value_info(name, element(array.dtype), array.shape) for name, array in feeds.items()]
    cache = [name for name in feeds if name.startswith("past_")]
    outputs = ["out", *(name.replace("past", "present") for name in cache)]
    node = helper.make_node(operator, list(feeds), outputs, domain="com.microsoft", scale=WIDTH**-0.5, **attributes)
    shapes = [feeds["query"].shape, *(feeds[name].shape for name in cache)]
    kind = element(feeds["query"].dtype)
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(outputs, shapes, strict=True)]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(
        helper.make_graph([node], operator, inputs, given), opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return made
