"""What a name of the decoder's graph stands for while it is translated: tensors, and what kernels take unmade.

Kernels take the packed projection whole, rotate, and multiply by factors themselves; so what a graph says with Split,
RotaryEmbedding and Mul is remembered until it is known what it is for, and made as a tensor only where nothing knows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from tvm import relax

Value = Any
"""A `relax.Var`, a NumPy constant, or one of the classes below."""


@dataclass(frozen=True)
class Parameter:
    """A weight that lies in a data file.

    Attributes:
        dtype: as it lies there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Mask:
    """The attention mask, or what is worked out from it alone: a function is given the lengths of its sequences instead."""


@dataclass(frozen=True)
class Part:
    """Columns ``start`` to ``start + width`` of ``source``."""

    source: relax.Var
    start: int
    width: int


@dataclass(frozen=True)
class Scaled:
    """``value`` times a number."""

    value: Value
    factor: float


@dataclass(frozen=True)
class Rotated:
    """Heads turned by tables of cosines and sines."""

    value: Value
    cos: Value
    sin: Value


@dataclass(frozen=True)
class Sigmoid:
    """1 / (1 + exp(-value))."""

    value: Value


@dataclass(frozen=True)
class Silu:
    """``value`` times its sigmoid."""

    value: Value


@dataclass(frozen=True)
class Turned:
    """``value`` with its tokens along the first axis, as GatherND takes them."""

    value: Value


@dataclass(frozen=True)
class Tokens:
    """Numbers of tokens, or of rows behind them.

    Attributes:
        index: int64 (any,); None of all tokens in their order.
    """

    index: relax.Var | None = None


@dataclass(frozen=True)
class Nobody:
    """Numbers of no token, or what is worked out of no rows."""


@dataclass(frozen=True)
class Zeros:
    """Rows of zeros, however many."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a tensor: how many rows there are is known to the tensors themselves."""


@dataclass(frozen=True)
class RequestValue:
    """What is worked out of a request alone, and holds for all of its tokens, in the graph's own axes."""

    value: relax.Expr


class Unmade(ABC):
    """Rows that need not be in memory of their own."""

    @abstractmethod
    def made(self, decoder: Any) -> relax.Var:
        """They as a tensor (rows, width); ``decoder`` is the `Translation`."""


def number_of(value: Value) -> float | None:
    """The one number that a constant holds; None of anything else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return float(value.reshape(()))
    return None


def variables(value: Value) -> set[relax.Var]:
    """Tensors that a value is made of, or will be."""
    if isinstance(value, relax.Var):
        return {value}
    parts: list[Value] = list(value) if isinstance(value, tuple) else []
    if is_dataclass(value):
        parts = [getattr(value, each.name) for each in fields(value)]
    return {tensor for part in parts for tensor in variables(part)}


def same(one: Value, other: Value) -> bool:
    """Whether two names stand for the same values."""
    if isinstance(one, relax.Var) or isinstance(other, relax.Var):
        return isinstance(one, relax.Var) and one.same_as(other)
    if isinstance(one, Part) and isinstance(other, Part):
        return one.source.same_as(other.source) and (one.start, one.width) == (other.start, other.width)
    return one is other
