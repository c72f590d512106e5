"""Calls of the decoder's graph over cache buffers that it writes in place, named to it once and used again.

A decoder of 40 layers has 160 cache values at its border. Which buffers they are changes only with the sequences of a
call; so a set of buffers keeps the binding that names it, and a call binds the rest (onnxruntime, IOBinding: a name that
is bound again takes the new value).
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from runtime_py.backends.ort_inputs import DTYPES, PAST, PRESENT, taken
from runtime_py.backends.ort_run_errors import run_errors
from runtime_py.contracts import DECODER

LOGITS = "logits"


@dataclass(frozen=True)
class DeviceArray:
    """An array on a device, by address; axis 0 counts sequences. Whoever makes it keeps the memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str

    def rows(self, first: int, last: int) -> DeviceArray:
        """Those from ``first`` to before ``last``, in the same memory."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.address + first * row, (last - first, *self.shape[1:]), self.dtype, self.device)

    def bind(self, binding: Any, taken: str, given: str) -> None:
        """Name it to a binding as an input and as the output that is written over it."""
        for bind, name in ((binding.bind_input, taken), (binding.bind_output, given)):
            bind(name, self.device, 0, self.dtype.type, self.shape, self.address)


class CacheBuffers(dict[str, Any]):
    """OrtValues or `DeviceArray` by cache input, and the bindings made of them, with the names of the other inputs in each.

    Attributes:
        arrays: the memory of these OrtValues by the same names, where it is the processor's.
        bindings: by the identity of the `DecoderCalls` that made them and forget them when they go.
        tensors: what a decoder library calls these buffers, once it was given them.
    """

    def __init__(
        self,
        values: Mapping[str, Any] = MappingProxyType({}),
        arrays: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        super().__init__(values)
        self.arrays = arrays
        self.bindings: dict[int, tuple[frozenset[str], Any]] = {}
        self.tensors: Any = None


class DecoderCalls:
    """Runs one session of the decoder.

    Args:
        bind: makes an OrtValue over a NumPy array, which it does not copy.
        vocabulary: width of the logits, as the contract says it.
        before_call: called before every call, when all is ready for it.
        copies: the provider computes in memory of its own, to which a binding copies values of the processor's memory when
            they are named (onnxruntime, IOBinding::BindInput): they are named anew for every call.

    Attributes:
        inputs: what the session can be fed, by name.
        seconds: inside the session, all calls so far.
    """

    def __init__(
        self,
        session: Any,
        bind: Callable[[np.ndarray], Any],
        vocabulary: int,
        before_call: Callable[[], None] = lambda: None,
        copies: bool = False,
    ) -> None:
        self.session = session
        self.inputs: Mapping[str, Any] = taken(session)
        self.seconds = 0.0
        self._bind, self._before_call = bind, before_call
        self._vocabulary, self._copies = vocabulary, copies
        self._dtype = np.dtype(next(DTYPES[value.type] for value in session.get_outputs() if value.name == LOGITS))
        self._bound: list[weakref.ref[CacheBuffers]] = []

    def __call__(self, feeds: Mapping[str, np.ndarray], outputs: tuple[int, int], buffers: CacheBuffers) -> np.ndarray:
        """Logits (rows, outputs, vocabulary) in the graph's dtype.

        Args:
            feeds: every input but the caches; they are read in place, so they live as long as the call.
            outputs: sequences of the call, and the tokens of each that get logits.
        """
        binding = self._binding(frozenset(feeds), buffers)
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._bind(value))
        logits = np.empty((*outputs, self._vocabulary), self._dtype)
        binding.bind_ortvalue_output(LOGITS, self._bind(logits))
        self._before_call()
        began = time.perf_counter()
        with run_errors(DECODER):
            self.session.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - began
        return logits

    def forget(self) -> None:
        """Let go of every binding, which hold the session's memory."""
        for reference in self._bound:
            buffers = reference()
            if buffers is not None:
                buffers.bindings.pop(id(self), None)
        self._bound.clear()

    def _binding(self, names: frozenset[str], buffers: CacheBuffers) -> Any:
        made = buffers.bindings.get(id(self))
        if made is not None and made[0] == names:  # an input left out would still be bound
            return made[1]
        binding = self.session.io_binding()
        for name, buffer in buffers.items():
            written = PRESENT + name.removeprefix(PAST)
            if isinstance(buffer, DeviceArray):
                buffer.bind(binding, name, written)
            else:
                binding.bind_ortvalue_input(name, buffer)
                binding.bind_ortvalue_output(written, buffer)
        if not self._copies:
            self._bound = [each for each in self._bound if each() is not None]
            self._bound.append(weakref.ref(buffers))
            buffers.bindings[id(self)] = (names, binding)
        return binding
