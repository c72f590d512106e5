"""Chunks of bytes: ``vpdpbusd`` multiplies four unsigned ones with four signed ones for a lane of 32 bits, exactly."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from export.processor.online_softmax import LANES
from export.processor.vectors import Index

CHUNK = 32
"""Bytes that are multiplied at once."""

QUAD = 4
"""Bytes that are multiplied for a lane, so positions whose values are added at once."""


def none() -> tirx.Expr:
    """No sums."""
    return T.broadcast(T.int32(0), LANES)


def chunk_of(number: Index) -> tirx.Expr:
    """The index of a chunk of bytes."""
    return T.ramp(number * CHUNK, 1, CHUNK)


def interleaved(rows: list[tirx.Expr]) -> list[tirx.Expr]:
    """Four chunks as four in which a lane has a channel of each; each half of a chunk lies in halves of all four."""
    half = CHUNK // 2

    def pairs(one: tirx.Expr, other: tirx.Expr, width: int) -> list[tirx.Expr]:
        """Elements of ``width`` bytes by turns: those of the lower half of each half, then those of the upper one."""
        count = half // width
        made = []
        for upper in (0, count // 2):
            places = [at + side for at in range(upper, upper + count // 2) for side in (0, 2 * count)]
            made.append(tirx.Shuffle([one, other], places + [at + count for at in places]))
        return made

    a, b, c, d = rows
    both = zip(pairs(a, b, 1), pairs(c, d, 1), strict=True)
    words = [[T.reinterpret(f"int16x{half}", vector) for vector in two] for two in both]
    return [T.reinterpret(f"int8x{CHUNK}", vector) for one, other in words for vector in pairs(one, other, 2)]


def dot(total: tirx.Expr, unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
    """int32 lanes, to each of which four products of bytes are added."""
    return T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.x86.avx512.vpdpbusd.256", total, unsigned, signed)
