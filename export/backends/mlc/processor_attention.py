"""Attention on a processor, over the paged cache and among the rows of a call, in vectors and on all cores.

TVM's own kernels (apache-tvm 0.27.0.post1, relax/frontend/nn/llm/_decode_kernels.py and _prefill_kernels.py) take one
number at a time on one core, and those of a prompt walk through every page of the cache for every row. Here a block of
positions is scored at once, with the running maximum and sum of an online softmax; keys that a row may not see are not
read. Arguments and meaning are TVM's, but that a cache which rotates keys when they are read is refused.
"""

# mypy: ignore-errors
from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T

from export.backends.mlc.passes.base import ModulePass, Part
from export.specs import DecoderSpec

PAGE = 16
"""Positions of a page, and of a block of positions that are scored at once."""

LANES = 8
"""Numbers of a vector; a narrower processor takes several for it."""

AT_ONCE = 8
"""Vectors of sums that stay in registers."""

LOWEST = -5e4
"""TVM's scores of positions that are not seen, and the log-sum-exp of none."""

DECODE, PAGED, RAGGED = "batch_decode_paged_kv_cpu", "batch_prefill_paged_kv_cpu", "batch_prefill_ragged_kv"


class AttendOnProcessor(ModulePass):
    """Replaces TVM's kernels for processors, where a head is whole vectors wide; those of sliding windows and trees stay."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_dim, dtype)

    def requires(self, mod: IRModule) -> None:
        """Raise AssertionError when this TVM version calls the kernels differently."""
        found = {variable.name_hint: len(mod[variable].params) for variable in mod.get_global_vars()}
        expected = {DECODE: 13, PAGED: 15, RAGGED: 14}
        if any(found.get(name) != count for name, count in expected.items()):
            raise AssertionError(f"expected kernels with so many arguments: {expected}, found {sorted(found.items())}")

    def rewrite(self, mod: IRModule) -> IRModule:
        if self.heads.size % LANES:
            return mod
        for name, made in ((DECODE, decode_kernel), (PAGED, paged_kernel), (RAGGED, ragged_kernel)):
            variable = mod.get_global_var(name)
            mod[variable] = made(self.heads).with_attr("global_symbol", name)
        return mod


@dataclass(frozen=True)
class Heads:
    """Of queries and of keys, ``size`` wide; the numbers of the cache are of ``dtype``."""

    queries: int
    keys: int
    size: int
    dtype: str

    @property
    def group(self) -> int:
        """Heads of queries that share one of keys."""
        return self.queries // self.keys

    @property
    def vectors(self) -> int:
        return self.size // LANES


def lanes(piece):
    return T.ramp(piece * LANES, 1, LANES)


def joined(parts, operation):
    """Pairs first, so that no chain is longer than it must be."""
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [operation(parts[at], parts[at + half]) for at in range(half)] + parts[2 * half :]
    return parts[0]


def power_of_two(x, width):
    """2^x in float32 for x up to 0, a vector of ``width`` or, for 1, a number; below 2^-126 that."""
    every = (lambda value: T.broadcast(value, width)) if width > 1 else (lambda value: value)
    kind = f"x{width}" if width > 1 else ""
    x = T.max(every(T.float32(-126)), x)
    whole = T.nearbyint(x)
    rest, value = x - whole, every(T.float32(math.log(2) ** 7 / math.factorial(7)))
    for order in reversed(range(7)):
        value = value * rest + every(T.float32(math.log(2) ** order / math.factorial(order)))
    exponent = T.shift_left(T.Cast(f"int32{kind}", whole) + every(T.int32(127)), every(T.int32(23)))
    return value * T.reinterpret(f"float32{kind}", exponent)


@dataclass(frozen=True)
class Softmax:
    """What is kept of one row while blocks of positions pass by, for each head of a group; all float32.

    Attributes:
        query: (group, size), scaled so that scores are exponents of two.
        total: (group, size), values times weights.
        state: (group, 2), the largest score and the sum of weights.
        scores: (PAGE,), of one block.
        sums: (AT_ONCE, LANES), of the total while a block is added.
        change: (2,), the new largest score and what weights of the older one are multiplied with.
    """

    heads: Heads
    query: tirx.Buffer
    total: tirx.Buffer
    state: tirx.Buffer
    scores: tirx.Buffer
    sums: tirx.Buffer
    change: tirx.Buffer

    def begin(self, read, scale):
        """Write the state before the first block; ``read`` gives float32 numbers of (member, number of the vector)."""
        factor = T.broadcast(scale * T.float32(math.log2(math.e)), LANES)
        for member in range(self.heads.group):
            T.buffer_store(self.state, T.float32(LOWEST), [member, 0])
            T.buffer_store(self.state, T.float32(1), [member, 1])
            for piece in range(self.heads.vectors):
                T.buffer_store(self.total, T.broadcast(T.float32(0), LANES), [member, lanes(piece)])
                T.buffer_store(self.query, read(member, piece) * factor, [member, lanes(piece)])

    def add(self, seen, key, value):
        """Write one block of ``seen`` positions; ``key`` and ``value`` give float32 numbers of (position, number of the vector)."""
        with T.serial(0, self.heads.group) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(LOWEST), PAGE), [T.ramp(0, 1, PAGE)])
            with T.serial(0, seen) as position:
                T.buffer_store(self.scores, self._score(member, position, key), [position])
            self._weigh(member)
            for first in range(0, self.heads.vectors, AT_ONCE):
                self._add_values(member, range(first, min(first + AT_ONCE, self.heads.vectors)), seen, value)

    def _score(self, member, position, key):
        products = [self.query[member, lanes(piece)] * key(position, piece) for piece in range(self.heads.vectors)]
        chains = [sum(products[at + 4 :: 4], products[at]) for at in range(min(4, len(products)))]
        T.buffer_store(self.sums, joined(chains, lambda a, b: a + b), [0, lanes(0)])
        return joined([self.sums[0, lane] for lane in range(LANES)], lambda a, b: a + b)

    def _weigh(self, member):
        """Scores become weights of the largest so far."""
        every, factor = T.ramp(0, 1, PAGE), self.change[1]
        largest = joined([self.scores[at] for at in range(PAGE)], T.max)
        T.buffer_store(self.change, T.max(self.state[member, 0], largest), [0])
        T.buffer_store(self.change, power_of_two(self.state[member, 0] - self.change[0], 1), [1])
        T.buffer_store(self.state, self.change[0], [member, 0])
        T.buffer_store(self.scores, power_of_two(self.scores[every] - T.broadcast(self.change[0], PAGE), PAGE), [every])
        weights = joined([self.scores[at] for at in range(PAGE)], lambda a, b: a + b)
        T.buffer_store(self.state, self.state[member, 1] * factor + weights, [member, 1])

    def _add_values(self, member, pieces, seen, value):
        for at, piece in enumerate(pieces):
            older = self.total[member, lanes(piece)] * T.broadcast(self.change[1], LANES)
            T.buffer_store(self.sums, older, [at, lanes(0)])
        with T.serial(0, seen) as position:
            weight = T.broadcast(self.scores[position], LANES)
            for at, piece in enumerate(pieces):
                T.buffer_store(self.sums, self.sums[at, lanes(0)] + weight * value(position, piece), [at, lanes(0)])
        for at, piece in enumerate(pieces):
            T.buffer_store(self.total, self.sums[at, lanes(0)], [member, lanes(piece)])

    def end(self, row, head, output, lse):
        """Write the row's output (row, head, size) and base-2 log-sum-exp (row, head)."""
        for member in range(self.heads.group):
            query = head * self.heads.group + member
            for piece in range(self.heads.vectors):
                share = self.total[member, lanes(piece)] / T.broadcast(self.state[member, 1], LANES)
                T.buffer_store(output, T.Cast(f"{self.heads.dtype}x{LANES}", share), [row, query, lanes(piece)])
            T.buffer_store(lse, self.state[member, 0] + T.log2(self.state[member, 1]), [row, query])


def softmax(heads):
    """Its buffers, in the block that is being written."""
    sizes = (heads.group, heads.size), (heads.group, heads.size), (heads.group, 2), (PAGE,), (AT_ONCE, LANES), (2,)
    return Softmax(heads, *(T.sblock_alloc_buffer(size, "float32") for size in sizes))


def vector(buffer, *place):
    """float32: a vector of what the buffer holds there."""
    return T.Cast(f"float32x{LANES}", buffer[place])


def attend_pages(heads, row, head, seen, first, q, pages, page_values, output, lse, scale):
    """Write the attention of one row and one head of keys to ``seen`` positions of the pages from ``first`` on."""
    page = T.sblock_alloc_buffer((1,), "int32")
    state = softmax(heads)
    state.begin(lambda member, piece: vector(q, row, head * heads.group + member, lanes(piece)), scale)
    with T.serial(0, (seen + PAGE - 1) // PAGE) as block:
        T.buffer_store(page, page_values[first + block], [0])
        state.add(
            T.min(PAGE, seen - block * PAGE),
            lambda position, piece: vector(pages, page[0], 0, head, position, lanes(piece)),
            lambda position, piece: vector(pages, page[0], 1, head, position, lanes(piece)),
        )
    state.end(row, head, output, lse)


def decode_kernel(heads: Heads) -> tirx.PrimFunc:
    """One row of each sequence, to all positions in its pages."""
    sizes = (heads.queries, heads.keys, heads.size)
    n_queries, n_keys, size = sizes
    dtype = heads.dtype

    @T.prim_func(s_tir=True)
    def decode(
        a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle, g: T.handle, h: T.handle, i: T.handle,
        rotary_mode: T.int32, rope_scale: T.float32, rope_theta: T.float32, sm_scale: T.float32,
    ):
        T.func_attr({"tirx.is_scheduled": True})
        batch, values, all_pages = T.int32(), T.int32(), T.int32()
        offset_1, offset_2, offset_3, offset_4, offset_5 = T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        q = T.match_buffer(a, (batch, n_queries, size), dtype)
        pages = T.match_buffer(b, (all_pages, 2, n_keys, PAGE, size), dtype)
        page_indptr = T.match_buffer(c, (batch + 1,), "int32", elem_offset=offset_1)
        page_values = T.match_buffer(d, (values,), "int32", elem_offset=offset_2)
        last_page = T.match_buffer(e, (batch,), "int32", elem_offset=offset_3)
        key_offsets = T.match_buffer(f, (batch,), "int32", elem_offset=offset_4)
        query_positions = T.match_buffer(g, (batch,), "int32", elem_offset=offset_5)
        output = T.match_buffer(h, (batch, n_queries, size), dtype)
        lse = T.match_buffer(i, (batch, n_queries), "float32")
        assert rotary_mode == 0, "this cache does not rotate keys when they are read"
        for item in T.parallel(batch * n_keys):
            with T.sblock("attention"):
                T.reads(q[0:batch, 0:n_queries, 0:size], pages[0:all_pages, 0:2, 0:n_keys, 0:PAGE, 0:size])
                T.writes(output[0:batch, 0:n_queries, 0:size], lse[0:batch, 0:n_queries])
                row: T.let[T.int32] = item // n_keys
                head: T.let[T.int32] = item % n_keys
                first: T.let[T.int32] = page_indptr[row]
                count: T.let[T.int32] = page_indptr[row + 1] - first
                seen: T.let[T.int32] = T.if_then_else(count > 0, (count - 1) * PAGE + last_page[row], 0)
                attend_pages(heads, row, head, seen, first, q, pages, page_values, output, lse, sm_scale)

    return decode


def paged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to all positions in its pages or, causal, to those up to their own, of which the last is the last."""
    n_queries, n_keys, size, dtype = heads.queries, heads.keys, heads.size, heads.dtype

    @T.prim_func(s_tir=True)
    def paged(
        a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle, g: T.handle, h: T.handle, i: T.handle,
        j: T.handle,
        causal: T.int32, rotary_mode: T.int32, rope_scale: T.float32, rope_theta: T.float32, sm_scale: T.float32,
    ):
        T.func_attr({"tirx.is_scheduled": True})
        batch, rows, values, all_pages = T.int32(), T.int32(), T.int32(), T.int32()
        offset_1, offset_2, offset_3, offset_4, offset_5, offset_6 = T.int32(), T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        q = T.match_buffer(a, (rows, n_queries, size), dtype)
        q_indptr = T.match_buffer(b, (batch + 1,), "int32", elem_offset=offset_1)
        pages = T.match_buffer(c, (all_pages, 2, n_keys, PAGE, size), dtype)
        page_indptr = T.match_buffer(d, (batch + 1,), "int32", elem_offset=offset_2)
        page_values = T.match_buffer(e, (values,), "int32", elem_offset=offset_3)
        last_page = T.match_buffer(f, (batch,), "int32", elem_offset=offset_4)
        key_offsets = T.match_buffer(g, (batch,), "int32", elem_offset=offset_5)
        query_positions = T.match_buffer(h, (rows,), "int32", elem_offset=offset_6)
        output = T.match_buffer(i, (rows, n_queries, size), dtype)
        lse = T.match_buffer(j, (rows, n_queries), "float32")
        assert rotary_mode == 0, "this cache does not rotate keys when they are read"
        for sequence in T.serial(batch):
            for item in T.parallel((q_indptr[sequence + 1] - q_indptr[sequence]) * n_keys):
                with T.sblock("attention"):
                    T.reads(q[0:rows, 0:n_queries, 0:size], pages[0:all_pages, 0:2, 0:n_keys, 0:PAGE, 0:size])
                    T.writes(output[0:rows, 0:n_queries, 0:size], lse[0:rows, 0:n_queries])
                    own: T.let[T.int32] = q_indptr[sequence + 1] - q_indptr[sequence]
                    index: T.let[T.int32] = item // n_keys
                    head: T.let[T.int32] = item % n_keys
                    first: T.let[T.int32] = page_indptr[sequence]
                    count: T.let[T.int32] = page_indptr[sequence + 1] - first
                    length: T.let[T.int32] = T.if_then_else(count > 0, (count - 1) * PAGE + last_page[sequence], 0)
                    seen: T.let[T.int32] = T.if_then_else(causal > 0, T.min(length, T.max(0, length - own + index + 1)), length)
                    row: T.let[T.int32] = q_indptr[sequence] + index
                    attend_pages(heads, row, head, seen, first, q, pages, page_values, output, lse, sm_scale)

    return paged


def ragged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to the keys and values of as many rows as are given or, causal, to those up to their own."""
    n_queries, n_keys, size, dtype = heads.queries, heads.keys, heads.size, heads.dtype

    @T.prim_func(s_tir=True)
    def ragged(
        a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle, g: T.handle, h: T.handle, i: T.handle,
        causal: T.int32, rotary_mode: T.int32, rope_scale: T.float32, rope_theta: T.float32, sm_scale: T.float32,
    ):
        T.func_attr({"tirx.is_scheduled": True})
        batch, rows, positions = T.int32(), T.int32(), T.int32()
        offset_1, offset_2, offset_3, offset_4 = T.int32(), T.int32(), T.int32(), T.int32()
        q = T.match_buffer(a, (rows, n_queries, size), dtype)
        q_indptr = T.match_buffer(b, (batch + 1,), "int32", elem_offset=offset_1)
        k = T.match_buffer(c, (positions, n_keys, size), dtype)
        v = T.match_buffer(d, (positions, n_keys, size), dtype)
        k_indptr = T.match_buffer(e, (batch + 1,), "int32", elem_offset=offset_2)
        query_positions = T.match_buffer(f, (rows,), "int32", elem_offset=offset_3)
        key_offsets = T.match_buffer(g, (batch,), "int32", elem_offset=offset_4)
        output = T.match_buffer(h, (rows, n_queries, size), dtype)
        lse = T.match_buffer(i, (rows, n_queries), "float32")
        assert rotary_mode == 0, "keys are rotated before they come here"
        for sequence in T.serial(batch):
            for item in T.parallel((q_indptr[sequence + 1] - q_indptr[sequence]) * n_keys):
                with T.sblock("attention"):
                    T.reads(q[0:rows, 0:n_queries, 0:size], k[0:positions, 0:n_keys, 0:size], v[0:positions, 0:n_keys, 0:size])
                    T.writes(output[0:rows, 0:n_queries, 0:size], lse[0:rows, 0:n_queries])
                    own: T.let[T.int32] = q_indptr[sequence + 1] - q_indptr[sequence]
                    index: T.let[T.int32] = item // n_keys
                    head: T.let[T.int32] = item % n_keys
                    length: T.let[T.int32] = k_indptr[sequence + 1] - k_indptr[sequence]
                    seen: T.let[T.int32] = T.if_then_else(causal > 0, T.min(length, T.max(0, length - own + index + 1)), length)
                    attend_rows(
                        heads, q_indptr[sequence] + index, head, seen, k_indptr[sequence], q, k, v, output, lse, sm_scale
                    )

    return ragged


def attend_rows(heads, row, head, seen, first, q, k, v, output, lse, scale):
    """Write the attention of one row and one head of keys to ``seen`` rows of keys and values from ``first`` on."""
    state = softmax(heads)
    state.begin(lambda member, piece: vector(q, row, head * heads.group + member, lanes(piece)), scale)
    with T.serial(0, (seen + PAGE - 1) // PAGE) as block:
        state.add(
            T.min(PAGE, seen - block * PAGE),
            lambda position, piece: vector(k, first + block * PAGE + position, head, lanes(piece)),
            lambda position, piece: vector(v, first + block * PAGE + position, head, lanes(piece)),
        )
    state.end(row, head, output, lse)
