"""Vectors of any number of lanes, one among them, and what asks memory for what will be read."""

from __future__ import annotations

from typing import TypeAlias

from tvm import tirx
from tvm.script import tirx as T

Index: TypeAlias = "tirx.Expr | int"

LINE = 64
"""Bytes of a cache line."""

FIRST = 3
"""Of `llvm.prefetch`: the first cache."""


def span(first: Index, many: int) -> Index:
    """The index of ``many`` elements from ``first`` on."""
    return T.ramp(first, 1, many) if many > 1 else first


def splat(number: float, many: int) -> tirx.Expr:
    """float32: the number in every one of ``many`` lanes."""
    return T.broadcast(T.float32(number), many) if many > 1 else T.float32(number)


def fused(one: tirx.Expr, other: tirx.Expr, addend: tirx.Expr) -> tirx.Expr:
    """one * other + addend, rounded once. Of a sum of two products a compiler chooses which is not rounded itself."""
    kind = str(one.ty.dtype)
    many = int(kind.partition("x")[2] or 1)
    name = f"llvm.fma.v{many}f32" if many > 1 else "llvm.fma.f32"
    return T.call_llvm_pure_intrin(kind, name, one, other, addend)


def prefetch(element: tirx.Expr, locality: int) -> tirx.Expr:
    """Prefetch the cache line of an element; an address outside is of no consequence.

    The address is called an integer, the type that TVM gives those of tensor maps; it is an address to the code generator.
    AttachGlobalSymbol of TVM 0.27, when it puts the prefix of a system library before names, takes every call for one that
    returns a number, and fails for a pointer (apache/tvm, src/relax/transform/attach_global_symbol.cc, `TirxGvarMutator`).

    Args:
        locality: of `llvm.prefetch`: 3 for the first cache, 2 for the second, 1 for the third.
    """
    address = T.call_intrin("uint64", "tirx.address_of", element)
    return T.call_llvm_intrin("void", "llvm.prefetch.p0", address, T.int32(0), T.int32(locality), T.int32(1))
