"""Products of int4 codes with fixed-point numbers by a processor's byte instructions: AVX2 and arm64's dot products.

A number of ``count`` bytes is ``count`` planes: its lowest bytes, unsigned, then the next, and the highest, signed. A code
is at most 14, so that two products of a byte with a code, or four on arm64, are summed by one instruction without loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

from export.processor.targets import X86_VECTOR

Plane = Callable[[int, int], tirx.Expr]
"""(number of the byte, 0 for even elements or 1 for odd) to int8 bytes, as many as the vector has."""


@dataclass(frozen=True)
class ByteProducts(ABC):
    """``width`` bytes of a vector: so many pairs of codes, the even element of each in the lower four bits."""

    width: int

    @property
    def words(self) -> int:
        """32-bit words of a vector, each of eight codes."""
        return self.width // 4

    @property
    def elements(self) -> int:
        return 2 * self.width

    @property
    def side_by_side(self) -> bool:
        """Whether rows of a matrix are multiplied side by side, which takes many registers; else one by one."""
        return False

    def fitting(self, columns: int) -> ByteProducts:
        """These, or narrower ones of which a row of so many columns is a whole number."""
        return self

    def codes(self, words: tirx.Expr) -> tuple[tirx.Expr, tirx.Expr]:
        """uint32 words as uint8 vectors: the codes of even elements, and of odd ones."""
        pairs, mask = T.reinterpret(f"uint8x{self.width}", words), T.broadcast(T.uint8(15), self.width)
        return T.bitwise_and(pairs, mask), T.bitwise_and(self.upper(pairs), mask)

    def upper(self, pairs: tirx.Expr) -> tirx.Expr:
        """The upper four bits of each byte in its lower ones; what then lies above them is of no account."""
        return T.shift_right(pairs, T.broadcast(T.uint8(4), self.width))

    @abstractmethod
    def sums(self, words: tirx.Expr, plane: Plane, count: int) -> tirx.Expr:
        """For each word of a vector the int32 sum of its eight codes times their fixed-point numbers."""


@dataclass(frozen=True)
class Avx2(ByteProducts):
    """``vpmaddubsw`` multiplies unsigned bytes with signed ones and adds pairs, ``vpmaddwd`` does so with 16 bits."""

    width: int = X86_VECTOR

    def upper(self, pairs: tirx.Expr) -> tirx.Expr:
        """There is no shift of bytes."""
        halves = T.shift_right(T.reinterpret("uint16x16", pairs), T.broadcast(T.uint16(4), 16))
        return T.reinterpret("uint8x32", halves)

    def sums(self, words: tirx.Expr, plane: Plane, count: int) -> tirx.Expr:
        sides = list(enumerate(self.codes(words)))
        paired = []
        for number in range(count - 1):
            even, odd = (
                self._pairs(T.reinterpret("uint8x32", plane(number, side)), T.reinterpret("int8x32", codes))
                for side, codes in sides
            )
            paired.append(even + odd)
        even, odd = (self._pairs(codes, plane(count - 1, side)) for side, codes in sides)
        total = self._times(even + odd, 256) + self._times(paired[-1], 1)
        for lower in reversed(paired[:-1]):
            total = T.shift_left(total, T.broadcast(T.int32(8), 8)) + self._times(lower, 1)
        return total

    @staticmethod
    def _pairs(unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)

    @staticmethod
    def _times(sums: tirx.Expr, factor: int) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", sums, T.broadcast(T.int16(factor), 16))


@dataclass(frozen=True)
class Vnni(ByteProducts):
    """``vpdpbusd`` adds four products of an unsigned byte with a signed one to each 32-bit lane."""

    width: int = 64

    @property
    def side_by_side(self) -> bool:
        return True

    def fitting(self, columns: int) -> ByteProducts:
        return self if columns % self.elements == 0 else replace(self, width=X86_VECTOR)

    def upper(self, pairs: tirx.Expr) -> tirx.Expr:
        """There is no shift of bytes."""
        halves = T.shift_right(T.reinterpret(f"uint16x{self.width // 2}", pairs), T.broadcast(T.uint16(4), self.width // 2))
        return T.reinterpret(f"uint8x{self.width}", halves)

    def sums(self, words: tirx.Expr, plane: Plane, count: int) -> tirx.Expr:
        sides = list(enumerate(self.codes(words)))
        total = T.broadcast(T.int32(0), self.words)
        for side, codes in sides:
            total = self._plus(total, codes, plane(count - 1, side))
        for number in reversed(range(count - 1)):
            total = T.shift_left(total, T.broadcast(T.int32(8), self.words))
            for side, codes in sides:
                total = self._plus(total, plane(number, side), codes)
        return total

    def _plus(self, total: tirx.Expr, unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{8 * self.width}"
        return T.call_llvm_pure_intrin(f"int32x{self.words}", name, total, unsigned, signed)


@dataclass(frozen=True)
class Arm64Dot(ByteProducts):
    """``udot`` and ``sdot`` add four products of bytes to each 32-bit lane."""

    width: int = 16

    def sums(self, words: tirx.Expr, plane: Plane, count: int) -> tirx.Expr:
        sides = list(enumerate(self.codes(words)))
        total = T.broadcast(T.int32(0), 4)
        for side, codes in sides:
            signed = T.reinterpret("int8x16", codes)
            total = T.call_llvm_pure_intrin(
                "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, plane(count - 1, side), signed
            )
        for number in reversed(range(count - 1)):
            lower = T.broadcast(T.uint32(0), 4)
            for side, codes in sides:
                unsigned = T.reinterpret("uint8x16", plane(number, side))
                lower = T.call_llvm_pure_intrin("uint32x4", "llvm.aarch64.neon.udot.v4i32.v16i8", lower, unsigned, codes)
            total = T.shift_left(total, T.broadcast(T.int32(8), 4)) + T.reinterpret("int32x4", lower)
        return total


def byte_products(target: Target) -> ByteProducts | None:
    """The byte instructions that every processor of ``target`` has; None where there are none, or none that are known."""
    triple, features = str(target.attrs.get("mtriple", "")), [str(name) for name in target.attrs.get("mattr", [])]
    if triple.startswith("x86_64"):
        if "+avx512vnni" in features:
            return Vnni()
        return Avx2() if str(target.attrs.get("mcpu", "")) == "x86-64-v3" else None
    return Arm64Dot() if triple.startswith("aarch64") and "+dotprod" in features else None
