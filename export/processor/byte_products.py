"""Products of int4 codes with fixed-point numbers by byte instructions: AVX2, AVX-512 VNNI, arm64's dot products.

A number of ``count`` bytes is ``count`` planes: its lowest bytes, unsigned, then the next, and the highest, signed. A code
is at most 14, so that sums of some products of a byte with a code fit 16 bits. Sums of 32 bits wrap around, and a whole
chunk's, zero point and all, fits them: 32 * 7 * 2^23.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

from export.processor import block_instructions
from export.processor.block_instructions import BlockInstructions
from export.processor.targets import X86_VECTOR

AVX2, VNNI, ARM64 = block_instructions.Avx2(), block_instructions.Vnni(), block_instructions.Arm64Dot()
NARROW_VNNI = replace(VNNI, width=X86_VECTOR)

Plane = Callable[[int, int], tirx.Expr]
"""(number of the byte, number of the vector of codes) to int8 bytes, as many as the vector has."""


@dataclass(frozen=True)
class ByteProducts(ABC):
    """How a chunk of a row is multiplied in a 32-bit lane.

    Attributes:
        block: along a row: how codes are read, turned and decoded; in whose lanes products are added.
        many: the widest instructions, whose lanes are rows of the matrix; None where there are none for 16-bit numbers.
        ahead: bytes of codes from those that are multiplied to those that are asked for.
        locality: of `llvm.prefetch`, for codes.
        near: bytes from codes that are multiplied with one row of numbers to those that are asked for anew, from the second
            cache into the first; 0 where that was not measured.
    """

    block: BlockInstructions
    many: BlockInstructions | None
    ahead: int
    locality: int
    near: int

    @abstractmethod
    def sums(self, codes: Sequence[tirx.Expr], plane: Plane, count: int, zeros: tirx.Expr) -> tirx.Expr:
        """int32 by lane: ``zeros`` and the products of some uint8 vectors of codes with their numbers."""

    def pairs(self, total: tirx.Expr, one: tirx.Expr, other: tirx.Expr) -> tirx.Expr:
        """``total``, int32 lanes of `many`, and to each two products of 16-bit numbers, pairs of which are int32 lanes.

        Raises:
            NotImplementedError: there is no such instruction.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Avx2(ByteProducts):
    """``vpmaddubsw`` multiplies unsigned bytes with signed ones and adds pairs, ``vpmaddwd`` does so with 16 bits."""

    block: BlockInstructions = AVX2
    many: BlockInstructions | None = AVX2
    ahead: int = 16384
    locality: int = 2
    near: int = 3072

    def sums(self, codes: Sequence[tirx.Expr], plane: Plane, count: int, zeros: tirx.Expr) -> tirx.Expr:
        signed = [T.reinterpret("int8x32", vector) for vector in codes]
        # 8 * 2 * 14 * 128 and 4 * 2 * 14 * 255 fit 16 bits
        paired = [self._paired(vector, plane(count - 1, at)) for at, vector in enumerate(codes)]
        total = self._times(_added(paired), 256)
        for number in reversed(range(count - 1)):
            if number < count - 2:
                total = T.shift_left(total, T.broadcast(T.int32(8), 8))
            lower = [self._paired(T.reinterpret("uint8x32", plane(number, at)), vector) for at, vector in enumerate(signed)]
            for first in range(0, len(lower), 4):
                total = total + self._times(_added(lower[first : first + 4]), 1)
        return total + zeros

    def pairs(self, total: tirx.Expr, one: tirx.Expr, other: tirx.Expr) -> tirx.Expr:
        a, b = (T.reinterpret("int16x16", words) for words in (one, other))
        return total + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", a, b)

    @staticmethod
    def _paired(unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)

    @staticmethod
    def _times(sums: tirx.Expr, factor: int) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", sums, T.broadcast(T.int16(factor), 16))


@dataclass(frozen=True)
class Vnni(ByteProducts):
    """``vpdpbusd`` adds four products of an unsigned byte with a signed one to each lane, ``vpdpwssd`` two of 16 bits.

    Vectors along a row have 32 bytes, so that sums are added in the order of AVX2.
    """

    block: BlockInstructions = NARROW_VNNI
    many: BlockInstructions | None = VNNI
    ahead: int = 16384
    locality: int = 2
    near: int = 3072

    def sums(self, codes: Sequence[tirx.Expr], plane: Plane, count: int, zeros: tirx.Expr) -> tirx.Expr:
        none = T.broadcast(T.int32(0), 8)

        def added(start: tirx.Expr, plus: Callable[[tirx.Expr, int], tirx.Expr]) -> tirx.Expr:
            """Two chains, since each waits for itself."""
            chains = [start, none]
            for at in range(len(codes)):
                chains[at % 2] = plus(chains[at % 2], at)
            return chains[0] + chains[1]

        total = added(none, lambda chain, at: self._plus(chain, codes[at], plane(count - 1, at)))
        for number in reversed(range(count - 1)):
            start = none if number else zeros
            lower = added(start, lambda chain, at: self._plus(chain, plane(number, at), codes[at]))  # noqa: B023
            total = T.shift_left(total, T.broadcast(T.int32(8), 8)) + lower
        return total

    def pairs(self, total: tirx.Expr, one: tirx.Expr, other: tirx.Expr) -> tirx.Expr:
        a, b = (T.reinterpret("int16x32", words) for words in (one, other))
        return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", total, a, b)

    @staticmethod
    def _plus(total: tirx.Expr, unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx512.vpdpbusd.256", total, unsigned, signed)


@dataclass(frozen=True)
class Arm64Dot(ByteProducts):
    """``udot`` and ``sdot`` add four products of bytes to each 32-bit lane."""

    block: BlockInstructions = ARM64
    many: BlockInstructions | None = None
    ahead: int = 4608
    locality: int = 3
    near: int = 0

    def sums(self, codes: Sequence[tirx.Expr], plane: Plane, count: int, zeros: tirx.Expr) -> tirx.Expr:
        total = T.broadcast(T.int32(0), 4)
        for at, vector in enumerate(codes):
            signed = T.reinterpret("int8x16", vector)
            total = T.call_llvm_pure_intrin(
                "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, plane(count - 1, at), signed
            )
        for number in reversed(range(count - 1)):
            lower = T.broadcast(T.uint32(0), 4)
            for at, vector in enumerate(codes):
                unsigned = T.reinterpret("uint8x16", plane(number, at))
                lower = T.call_llvm_pure_intrin("uint32x4", "llvm.aarch64.neon.udot.v4i32.v16i8", lower, unsigned, vector)
            total = T.shift_left(total, T.broadcast(T.int32(8), 4)) + T.reinterpret("int32x4", lower)
        return total + zeros


def _added(vectors: Sequence[tirx.Expr]) -> tirx.Expr:
    return sum(vectors[1:], vectors[0])


def byte_products(target: Target) -> ByteProducts | None:
    """The byte instructions that every processor of ``target`` has; None where there are none, or none that are known."""
    match block_instructions.block_instructions(target):
        case block_instructions.Vnni():
            return Vnni()
        case block_instructions.Avx2():
            return Avx2()
        case block_instructions.Arm64Dot():
            return Arm64Dot()
    return None
