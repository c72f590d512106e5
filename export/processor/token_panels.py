"""Panels: how a vision tower's kernels keep what belongs to tokens, and the steps that are common to them.

The tokens of a picture, in their order, lie in panels of `PANEL`, the last filled up with tokens that nobody reads. A
panel holds channel after channel, and of each channel a number of every token, so a vector has one channel of `LANES`
tokens: products, sums over channels and softmax all go lane by lane, and no vector is ever turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.processor.kernel_frame import kernel
from export.processor.vectors import Index, span, splat

PANEL, LANES = 64, 16
"""Tokens of a panel, and of a vector."""

VECTORS = PANEL // LANES

TILE = 6
"""Rows of a matrix that are multiplied with a panel at once: their sums are 24 of 32 registers."""

LEAST = 1e-30
"""Of a largest number that is divided by."""


Axes: TypeAlias = "tuple[str, Sequence[int | str]]"


def at(vector: Index) -> tirx.Expr:
    """The index of a panel's vector."""
    return span(vector * LANES, LANES)


def spread(number: tirx.Expr) -> tirx.Expr:
    """The number in every lane."""
    return T.broadcast(number, LANES)


def every(number: float) -> tirx.Expr:
    """float32 in every lane."""
    return splat(number, LANES)


def as_float(vector: tirx.Expr) -> tirx.Expr:
    return T.Cast(f"float32x{LANES}", vector)


def nearest(vector: tirx.Expr) -> tirx.Expr:
    """int32, halves to the even one."""
    return T.Cast(f"int32x{LANES}", T.nearbyint(vector))


def registers(kind: str, *count: int) -> tirx.Buffer:
    """``count`` vectors that stay in registers, of the kernel that is being written."""
    return T.sblock_alloc_buffer((*count, LANES), kind)


def put(buffer: tirx.Buffer, value: tirx.Expr, *place: Index) -> None:
    """Write one vector of `registers`."""
    T.buffer_store(buffer, value, [*place, at(0)])


def got(buffer: tirx.Buffer, *place: Index) -> tirx.Expr:
    """One vector of `registers`."""
    return buffer[(*place, at(0))]


def kept(value: tirx.Expr) -> tirx.Expr:
    """float32, worked out here and used as often as one likes."""
    register = registers("float32")
    put(register, value)
    return got(register)


NUMBER: Axes = ("int64", ())
"""Of `panel_kernel`, an argument that is no array."""


def panel_kernel(shapes: Mapping[str, Axes], write: Callable[[Mapping[str, tirx.Expr]], None]) -> tirx.PrimFunc:
    """The kernel whose statements ``write(arrays)`` gives: arrays by name, and what is read of their sizes.

    Args:
        shapes: dtype and axes of each argument, in order; an axis is a number or the name of one.
    """
    with kernel(noalias=True) as builder:
        given = {name: arg(name, T.handle() if axes else T.int64()) for name, (_, axes) in shapes.items()}
        sizes = {axis: T.int64() for _, axes in shapes.values() for axis in axes if isinstance(axis, str)}
        arrays = {}
        for name, (kind, axes) in shapes.items():
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
            # weights may begin at any number
            align = 1 if kind == "int8" else 4
            arrays[name] = T.match_buffer(given[name], shape, kind, align=align) if axes else given[name]
        write({**sizes, **arrays})
    return builder.get()


@contextmanager
def block(name: str) -> Iterator[None]:
    """Statements with buffers of their own."""
    with T.sblock(name):
        T.reads()
        T.writes()
        yield


def tiles(count: int, write: Callable[[Index, int], None]) -> None:
    """``write(first, how many)`` for `TILE` of ``count`` rows after the other, and for the rest."""
    if count >= TILE:
        with T.serial(0, count // TILE) as tile:
            write(tile * TILE, TILE)
    if count % TILE:
        write(count // TILE * TILE, count % TILE)


def byte_dot(total: tirx.Expr, unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
    """int32 lanes, to each of which four products of an unsigned with a signed byte are added; bytes as int32 lanes."""
    one, other = T.reinterpret(f"uint8x{4 * LANES}", unsigned), T.reinterpret(f"int8x{4 * LANES}", signed)
    return T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.x86.avx512.vpdpbusd.512", total, one, other)


def word_dot(total: tirx.Expr, one: tirx.Expr, other: tirx.Expr) -> tirx.Expr:
    """int32 lanes, to each of which two products of 16-bit numbers are added; pairs as int32 lanes."""
    a, b = (T.reinterpret(f"int16x{2 * LANES}", pairs) for pairs in (one, other))
    return T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.x86.avx512.vpdpwssd.512", total, a, b)
