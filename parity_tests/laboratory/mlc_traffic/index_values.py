"""Index expressions over loops, evaluated for all values of those loops at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Loop:
    """One loop: TVM's variable, how often it runs, and the thread or block that it is bound to ("" for none)."""

    variable: Any
    extent: int
    thread: str

    @property
    def over_blocks(self) -> bool:
        return self.thread.startswith("blockIdx")


Index = int | Loop | tuple[Any, ...]
"""A number, a loop's variable, or an operator's name with what it works on."""

OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "FloorDiv": np.floor_divide,
    "FloorMod": np.mod,
    "Div": np.floor_divide,
    "Mod": np.mod,
    "Max": np.maximum,
    "Min": np.minimum,
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "RShift": np.right_shift,
    "BitwiseAnd": np.bitwise_and,
    "Select": np.where,
    "Looked up": lambda place, _: place,
}


def value_of(index: Index, values: Mapping[Loop, Any]) -> Any:
    """The number or array of an index; a loop that ``values`` does not name is at its start."""
    if isinstance(index, Loop):
        return values.get(index, 0)
    if isinstance(index, tuple):
        return OPERATORS[index[0]](*(value_of(part, values) for part in index[1:]))
    return index


def loops_of(index: Index) -> set[Loop]:
    """The loops that an index depends on."""
    if isinstance(index, Loop):
        return {index}
    if isinstance(index, tuple):
        return set().union(*(loops_of(part) for part in index[1:]))
    return set()


def looked_up(index: Index) -> list[tuple[Index, Index]]:
    """The places in memory that an index is read from, so that its value is not known here, and how many there are each."""
    if not isinstance(index, tuple):
        return []
    own = [(index[1], index[2])] if index[0] == "Looked up" else []
    return own + [place for part in index[1:] for place in looked_up(part)]


def grid(loops: list[Loop]) -> dict[Loop, np.ndarray]:
    """All values of the loops, each along an axis of its own."""
    return {
        loop: np.arange(loop.extent).reshape([-1 if axis == place else 1 for axis in range(len(loops))])
        for place, loop in enumerate(loops)
    }
