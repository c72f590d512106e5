"""A decoder call's inputs and outputs as they are bound to ONNX Runtime.

A decoder of 30 layers has 60 cache buffers, each an input and an output. They are bound once and stay; a step binds what
changes. Logits are written into an array that is there, as asking a binding for its outputs makes objects of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime_py.backends.logit_rows import COUNT, POSITIONS
from runtime_py.backends.ort_inputs import DTYPES, PAST, PRESENT

LOGITS = "logits"


class DecodeBinding:
    """A session's decoder bound to some cache buffers, which it writes in place.

    Args:
        ort: the module onnxruntime.
        buffers: OrtValues by name of the cache's inputs; kept alive.
    """

    def __init__(self, ort: Any, session: Any, buffers: Mapping[str, Any]) -> None:
        self.buffers = buffers
        self._ort, self._session = ort, session
        self._binding = session.io_binding()
        for name, buffer in buffers.items():
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), buffer)
        output = next(value for value in session.get_outputs() if value.name == LOGITS)
        self._vocabulary, self._dtype = output.shape[-1], DTYPES[output.type]
        self._names: frozenset[str] = frozenset()

    def fits(self, session: Any, buffers: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether a call with these can use it: what was bound once stays bound, so inputs have the same names."""
        same = session is self._session and buffers is self.buffers
        return same and (not self._names or self._names == frozenset(feeds))

    def run(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """One call; logits (batch, rows, vocabulary) in the graph's own dtype, an array of their own."""
        self._names = frozenset(feeds)
        make = self._ort.OrtValue.ortvalue_from_numpy
        given = [make(value) for value in feeds.values()]  # alive until the call is over
        for name, value in zip(feeds, given, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        if not isinstance(self._vocabulary, int):
            self._binding.bind_output(LOGITS)
            self._session.run_with_iobinding(self._binding)
            outputs: np.ndarray = self._binding.get_outputs()[self._place()].numpy()
            return outputs
        batch, tokens = feeds["inputs_embeds"].shape[:2]
        logits: np.ndarray = np.empty((batch, _rows(feeds, tokens), self._vocabulary), self._dtype)
        self._binding.bind_ortvalue_output(LOGITS, make(logits))
        self._session.run_with_iobinding(self._binding)
        return logits

    def _place(self) -> int:
        """Of the logits among what was bound: behind the cache's buffers, which were bound before."""
        return len(self.buffers)


def _rows(feeds: Mapping[str, np.ndarray], tokens: int) -> int:
    """How many rows of logits the graph gives for what it is fed (`runtime_py.backends.logit_rows`)."""
    if POSITIONS in feeds:
        return len(feeds[POSITIONS])
    return min(int(feeds[COUNT]) or tokens, tokens) if COUNT in feeds else 1
