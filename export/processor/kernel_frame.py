"""The frame of a kernel that is written statement by statement: what it is called with, by names that its errors say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import arg, prim_func

from export.processor.vectors import Index

Named = TypeVar("Named")


@contextmanager
def kernel(**attributes: bool) -> Iterator[IRBuilder]:
    """What is written inside becomes the function that the builder has; no automatic scheduler touches it."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_attr({"tirx.is_scheduled": True, **{f"tirx.{name}": value for name, value in attributes.items()}})
        yield builder


def named(name: str, made: Named) -> Named:
    """It, a size or an array, called so in the kernel."""
    IRBuilder.name(name, made)
    return made


def sizes(*names: str) -> list[tirx.Var]:
    """Sizes that are read from the arrays which have them."""
    return [named(name, T.int32()) for name in names]


def array(name: str, shape: Sequence[Index], dtype: str, **layout: Any) -> tirx.Buffer:
    """Declare the kernel's next argument; ``layout`` is of `T.match_buffer`."""
    return named(name, T.match_buffer(arg(f"{name}_handle", T.handle()), shape, dtype, **layout))


def whole_of(buffer: tirx.Buffer) -> tirx.BufferRegion:
    """All of it, as a block names what it reads or writes."""
    return buffer[tuple(slice(None) for _ in buffer.shape)]
