"""Sums of unsigned codes times int8 numbers in 32-bit lanes: AVX2, AVX-512 with VNNI, and arm64's dot products.

Each lane's sum is exact. A lane takes a whole chunk of 16 code bytes, so that what a block shares, two scales, is applied
once for a chunk and not once for each instruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script import tirx as T
from tvm.target import Target

VECTORS = 4
"""Vectors of codes that are taken at once: a lane of 32 bits is a quarter of a chunk."""

CHUNK = 16
"""Code bytes that one lane sums up."""


@dataclass(frozen=True)
class BlockInstructions(ABC):
    """``width`` bytes of a vector; how many rows are multiplied with each other at once, so that each is read once.

    Attributes:
        width: bytes.
        rows_at_once: rows of numbers.
        matrix_rows: rows of the matrix.
        panel_vectors: vectors of rows of the matrix, where many rows of numbers are multiplied.
        locality: of `llvm.prefetch`, the cache in which codes wait for their turn: the second, in which all of them fit.
        near: bytes from codes of one row to those that are asked for anew, from the second cache into the
            first; 0 where that was not measured.
        shared_sums: vectors of eight float32 that attention sums up at once where heads of queries share keys: half of
            the processor's registers, so that what is multiplied has the others.
    """

    width: int
    rows_at_once: int
    matrix_rows: int
    panel_vectors: int
    locality: int
    shared_sums: int
    near: int = 0

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector, and so the chunks that are summed at once."""
        return self.width // 4

    @property
    def words(self) -> bool:
        """Whether numbers of 16 bits are multiplied and added to lanes by one instruction (`token_panels.word_dot`)."""
        return False

    def fitting(self, row_bytes: int) -> BlockInstructions:
        """These, or narrower ones with which a row of so many bytes has less of a last stride."""
        return self

    def slices(self) -> list[tuple[int, BlockInstructions]]:
        """How lanes are shared out where one row of numbers is multiplied: the first of some, and what takes them."""
        return [(0, self)]

    def raised(self, bits: int) -> int:
        """Bits by which the codes of odd columns may stay to the left where one row of numbers is multiplied.

        To move one sum of them back is less work than to move every vector of codes.
        """
        return 0

    def lane_of(self, chunk):
        """Where the chunk number ``chunk`` of those taken at once is summed."""
        sections = self.width // CHUNK
        return chunk % sections * VECTORS + chunk // sections

    def chunk_of(self, lane: int) -> int:
        """The inverse of ``lane_of``."""
        return lane % VECTORS * (self.width // CHUNK) + lane // VECTORS

    def turned(self, vectors: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        """Four vectors of codes, in which chunks lie in a row, as four in which a chunk is one lane of each.

        Lane ``lane_of(chunk)`` of the vector ``i`` has the bytes ``4 i`` to ``4 i + 3`` of the chunk.
        """
        lanes = self.lanes
        first = [chosen for at in range(0, lanes, 4) for chosen in (at, lanes + at, at + 1, lanes + at + 1)]
        last = [chosen + 2 for chosen in first]
        low = [chosen for at in range(0, lanes, 4) for chosen in (at, at + 1, lanes + at, lanes + at + 1)]
        high = [chosen + 2 for chosen in low]
        a, b, c, d = (T.reinterpret(f"int32x{lanes}", vector) for vector in vectors)
        pairs = [tirx.Shuffle(two, order) for order in (first, last) for two in ((a, b), (c, d))]
        made = [tirx.Shuffle(pairs[at : at + 2], order) for at in (0, 2) for order in (low, high)]
        return [T.reinterpret(f"uint8x{self.width}", vector) for vector in made]

    def decoded(self, codes: tirx.Expr, bits: int, raised: int = 0) -> list[tirx.Expr]:
        """uint8 vectors of codes: of even columns and of odd ones for 4 bits, else the one vector.

        Args:
            raised: bits by which those of odd columns stay to the left, 0 or `raised`.
        """
        if bits == 8:
            return [codes]
        low, high = (T.broadcast(T.uint8(15 << shift), self.width) for shift in (0, raised))
        return [T.bitwise_and(codes, low), T.bitwise_and(codes if raised else self.upper(codes), high)]

    def upper(self, pairs: tirx.Expr) -> tirx.Expr:
        """The upper four bits of each byte in its lower ones; what then lies above them is of no account."""
        halves = T.reinterpret(f"uint16x{self.width // 2}", pairs)
        shifted = T.shift_right(halves, T.broadcast(T.uint16(4), self.width // 2))
        return T.reinterpret(f"uint8x{self.width}", shifted)

    def sum_type(self, bits: int) -> str:
        """Of the numbers in which products are summed up."""
        return "int32"

    def started(self, zeros: tirx.Expr, bits: int) -> tirx.Expr:
        """The sum of no product; ``zeros`` is int32 by lane, minus the zero point times the numbers."""
        return zeros

    @abstractmethod
    def plus(self, total: tirx.Expr, codes: tirx.Expr, numbers: tirx.Expr, bits: int) -> tirx.Expr:
        """``total`` and the products of uint8 codes (``signed_codes``: less 128) with int8 numbers within [-127, 127]."""

    def ended(self, total: tirx.Expr, zeros: tirx.Expr, bits: int) -> tirx.Expr:
        """The sum as int32 by lane."""
        return total

    def signed_codes(self, bits: int) -> bool:
        """Whether codes of 8 bits lose their zero point as they are multiplied."""
        return bits == 8


@dataclass(frozen=True)
class Avx2(BlockInstructions):
    """``vpmaddubsw`` adds pairs of products in 16 bits, ``vpmaddwd`` adds pairs of those in 32."""

    width: int = 32
    rows_at_once: int = 4
    matrix_rows: int = 1
    panel_vectors: int = 1
    locality: int = 1
    shared_sums: int = 8
    near: int = 4096

    def sum_type(self, bits: int) -> str:
        """Eight products of pairs with codes of 4 bits, each up to 2 * 15 * 127, fit 16 bits."""
        return "int16" if bits == 4 else "int32"

    def started(self, zeros: tirx.Expr, bits: int) -> tirx.Expr:
        return T.broadcast(T.int16(0), 16) if bits == 4 else T.broadcast(T.int32(0), 8)

    def plus(self, total: tirx.Expr, codes: tirx.Expr, numbers: tirx.Expr, bits: int) -> tirx.Expr:
        if bits == 4:
            return total + self._pairs(codes, numbers)
        signed = T.reinterpret("int8x32", T.bitwise_xor(codes, T.broadcast(T.uint8(128), 32)))
        turned = T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", numbers, signed)
        size = T.call_llvm_pure_intrin("int8x32", "llvm.abs.v32i8", signed, T.bool(False))
        return total + self._lanes(self._pairs(size, turned))

    def ended(self, total: tirx.Expr, zeros: tirx.Expr, bits: int) -> tirx.Expr:
        return self._lanes(total) + zeros if bits == 4 else total

    @staticmethod
    def _pairs(unsigned: tirx.Expr, signed: tirx.Expr) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)

    @staticmethod
    def _lanes(pairs: tirx.Expr) -> tirx.Expr:
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.broadcast(T.int16(1), 16))


@dataclass(frozen=True)
class Vnni(BlockInstructions):
    """``vpdpbusd`` adds four products of an unsigned byte with a signed one to each lane."""

    width: int = 64
    rows_at_once: int = 4
    matrix_rows: int = 2
    panel_vectors: int = 2
    locality: int = 1
    shared_sums: int = 16
    near: int = 4096

    @property
    def words(self) -> bool:
        return True

    def fitting(self, row_bytes: int) -> BlockInstructions:
        """Of processors with AVX-512 many do two products of 32 bytes in the time of one of 64."""
        return replace(self, width=32) if row_bytes % (VECTORS * self.width) else self

    def slices(self) -> list[tuple[int, BlockInstructions]]:
        """Vectors of 32 bytes, with which memory is read faster than with those of 64."""
        half = replace(self, width=32)
        return [(start, half) for start in range(0, self.lanes, half.lanes)]

    def raised(self, bits: int) -> int:
        return 4 if bits == 4 else 0

    def signed_codes(self, bits: int) -> bool:
        return False

    def plus(self, total: tirx.Expr, codes: tirx.Expr, numbers: tirx.Expr, bits: int) -> tirx.Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{8 * self.width}"
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, total, codes, numbers)


@dataclass(frozen=True)
class Arm64Dot(BlockInstructions):
    """``sdot`` adds four products of signed bytes to each lane."""

    width: int = 16
    rows_at_once: int = 4
    matrix_rows: int = 1
    panel_vectors: int = 2
    locality: int = 2
    shared_sums: int = 8

    def upper(self, pairs: tirx.Expr) -> tirx.Expr:
        return T.shift_right(pairs, T.broadcast(T.uint8(4), 16))

    def plus(self, total: tirx.Expr, codes: tirx.Expr, numbers: tirx.Expr, bits: int) -> tirx.Expr:
        lowered = T.bitwise_xor(codes, T.broadcast(T.uint8(128), 16)) if bits == 8 else codes
        signed = T.reinterpret("int8x16", lowered)
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, signed, numbers)


def block_instructions(target: Target) -> BlockInstructions | None:
    """The byte instructions that every processor of ``target`` has; None where there are none, or none that are known."""
    triple, features = str(target.attrs.get("mtriple", "")), [str(name) for name in target.attrs.get("mattr", [])]
    if triple.startswith("x86_64"):
        if "+avx512vnni" in features:
            return Vnni()
        return Avx2() if str(target.attrs.get("mcpu", "")) == "x86-64-v3" else None
    return Arm64Dot() if triple.startswith("aarch64") and "+dotprod" in features else None
