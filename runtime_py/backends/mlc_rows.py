"""Sequences of an MLC library's paged cache, several of which one decoder call may take.

A cache knows its sequences by number, keeps each in pages of its own, and lets two that begin alike share the whole pages of
what is common; so nothing is moved for those that enter a call. Attention over pages that several sequences of a call share
is worked out once and merged with that over their own.

Source: apache/tvm, src/runtime/vm/paged_kv_cache.cc (``ForkSequence``, ``PopN``, ``BeginForward``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.backends.base import Arrays, check_rewind
from runtime_py.backends.row_calls import BATCH
from runtime_py.contracts import TensorContract
from runtime_py.errors import UsageError

PAGE = 16
"""Positions in one page of the cache, as the phone's engine asks for."""


@dataclass(eq=False)
class MlcState:
    """One sequence: the library's cache object, the sequence's number there, and how much of it is filled."""

    cache: Any
    capacity: int
    length: int = 0
    sequence: int = 0


class PagedSequences:
    """The calls that TVM's runtime has for the sequences of a paged cache.

    Args:
        tvm: the module.
    """

    def __init__(self, tvm: Any) -> None:
        self._get, self._shape = tvm.get_global_func, tvm.runtime.ShapeTuple

    def _call(self, name: str, *arguments: Any) -> None:
        self._get(f"vm.builtin.kv_state_{name}")(*arguments)

    def begin(self, cache: Any, capacity: int, count: int) -> list[MlcState]:
        """So many empty sequences of a cache that has none."""
        states = [MlcState(cache, capacity, sequence=number) for number in range(count)]
        for state in states:
            self._call("add_sequence", cache, state.sequence)
        return states

    @contextmanager
    def fed(self, states: Sequence[MlcState], tokens: int) -> Iterator[None]:
        """Around a decoder call that takes ``tokens`` of each of these sequences of one cache, side by side."""
        cache, numbers = states[0].cache, [state.sequence for state in states]
        self._call("begin_forward", cache, self._shape(numbers), self._shape([tokens] * len(states)))
        yield
        self._call("end_forward", cache)
        for state in states:
            state.length += tokens

    def cut(self, state: MlcState, length: int) -> None:
        """Forget every position from ``length`` on."""
        check_rewind(length, state.length)
        if length == 0:  # whatever a call that failed has left
            self._call("remove_sequence", state.cache, state.sequence)
            self._call("add_sequence", state.cache, state.sequence)
        elif length < state.length:
            self._call("popn", state.cache, state.sequence, state.length - length)
        state.length = length

    def share(self, source: MlcState, target: MlcState, length: int) -> None:
        """Make ``target`` hold the first ``length`` positions of ``source``, of the same cache, and nothing else."""
        if source.cache is not target.cache or source is target or not 0 <= length <= source.length:
            raise UsageError(
                f"a copy of {length} positions of {source.length}", "positions that are filled", "ask for fewer positions"
            )
        if length == 0:
            self.cut(target, 0)
            return
        self._call("remove_sequence", target.cache, target.sequence)
        self._call("fork_sequence", source.cache, source.sequence, target.sequence, length)
        target.length = length


def whole_pages(capacity: int) -> int:
    """Positions of the pages that a sequence of ``capacity`` positions may fill."""
    return -(-capacity // PAGE) * PAGE


def sequence_axis(tensor: TensorContract) -> int | None:
    """The axis along which an input has a part for each sequence of a call: the contract's own, or the first where it has
    one row for a whole request; None for one that selects among the rows of a sequence.
    """
    if BATCH in tensor.shape:
        return tensor.shape.index(BATCH)
    return 0 if tensor.shape[0] == 1 else None


@dataclass(frozen=True)
class Steps:
    """What a library is fed for a token of each of several sequences, beside the tokens and the cache.

    Args:
        sides: contracts of the decoder inputs that the stock functions do not have, in the library's order.
        text: what those that select rows are for one text token, by name; None in a package that does not tell.
    """

    sides: Sequence[TensorContract]
    text: Mapping[str, Sequence[int]] | None

    @property
    def function(self) -> str:
        """The library's function, which takes `joined` between tokens and cache."""
        return "batch_run_decoder" if any(sequence_axis(tensor) is not None for tensor in self.sides) else "batch_decode"

    def are_text(self, inputs: Sequence[Arrays]) -> bool:
        """Whether each is a text token, as the function takes every one to be."""
        text = self.text or {}
        return all(np.array_equal(given[name], values) for given in inputs for name, values in text.items())

    def joined(self, inputs: Sequence[Arrays]) -> Iterator[tuple[np.ndarray, str]]:
        """Arrays of the sequences side by side, and the dtypes of their contracts."""
        for tensor in self.sides:
            axis = sequence_axis(tensor)
            if axis is not None:
                yield side_by_side(inputs, tensor.name, axis), tensor.dtype

    def why_not_together(self, metadata: Mapping[str, Any], count: int) -> str:
        """Why the library cannot take a token of each of ``count`` sequences in a call; "" where it can.

        Args:
            metadata: what the library's ``_metadata`` returns.
        """
        most = int(metadata["max_batch_size"])
        if count > most:
            planned = "one sequence" if most == 1 else f"{most} sequences"
            return f"the library was planned for {planned} a call (max_batch_size {most}; export with --batch for more)"
        if self.sides and self.text is None:
            names = ", ".join(tensor.name for tensor in self.sides)
            return f"the library takes {names} of one sequence a call (export the package again)"
        return ""


def side_by_side(inputs: Sequence[Arrays], name: str, axis: int) -> np.ndarray:
    """An input of several sequences as that of one call."""
    return np.concatenate([np.asarray(given[name]) for given in inputs], axis=axis)
