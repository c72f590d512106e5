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
from functools import partial

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T

from export.backends.mlc.passes.base import ModulePass, Part
from export.backends.mlc.passes.row_product import LINE, ask
from export.specs import DecoderSpec

PAGE = 16
"""Positions of a page."""

BLOCK, WIDE = 64, 16
"""Positions that are scored before any of their values is added, and scores of a vector."""

LANES = 8
"""Numbers of a vector; a narrower processor takes several for it."""

AHEAD = 4096
"""Bytes from what is read to what memory is asked for."""

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
    def item_bytes(self) -> int:
        return 2 if self.dtype == "float16" else 4

    @property
    def vectors(self) -> int:
        return self.size // LANES


def lanes(piece):
    return T.ramp(piece * LANES, 1, LANES)


def wide(part):
    return T.ramp(part * WIDE, 1, WIDE)


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
    """What is kept of some heads of one row while blocks of positions pass by; float32.

    Attributes:
        members: heads of queries.
        query: (members, size), scaled so that scores are exponents of two.
        total: (members, size), values times weights.
        state: (members, 2), the largest score and the sum of weights.
        scores: (members, BLOCK), of one block.
        unpacked: (PAGE, size), keys or values that several heads of queries read.
        several: (WIDE,), of a head's largest scores and of their sum.
        sums: (AT_ONCE, LANES), of the total while values are added.
        change: (2,), the new largest score and what weights of the older one are multiplied with.
    """

    heads: Heads
    members: int
    query: tirx.Buffer
    total: tirx.Buffer
    state: tirx.Buffer
    scores: tirx.Buffer
    unpacked: tirx.Buffer
    several: tirx.Buffer
    sums: tirx.Buffer
    change: tirx.Buffer

    def begin(self, read, scale):
        """Write the state before the first block; ``read`` gives float32 numbers of (member, number of the vector)."""
        factor = T.broadcast(scale * T.float32(math.log2(math.e)), LANES)
        with T.serial(0, self.members) as member:
            T.buffer_store(self.state, T.float32(LOWEST), [member, 0])
            T.buffer_store(self.state, T.float32(1), [member, 1])
            for piece in range(self.heads.vectors):
                T.buffer_store(self.total, T.broadcast(T.float32(0), LANES), [member, lanes(piece)])
                T.buffer_store(self.query, read(member, piece) * factor, [member, lanes(piece)])

    def add(self, seen, key, value):
        """Write one block of ``seen`` positions.

        Args:
            key: float32 numbers of a key, by (part of PAGE positions, head, position of the part, number of the vector).
            value: the same of a value.
        """
        parts = (seen + WIDE - 1) // WIDE
        with T.serial(0, self.members) as member:
            T.buffer_store(self.scores, T.broadcast(T.float32(LOWEST), WIDE), [member, wide(parts - 1)])
        self._each(seen, key, self._score)
        with T.serial(0, self.members) as member:
            self._weigh(member, parts)
        self._each(seen, value, self._add_values)

    def _each(self, seen, read, work):
        """Write ``work`` for every part and every member, in the order in which they lie in memory."""
        heads = self.heads
        with T.serial(0, (seen + PAGE - 1) // PAGE) as part:
            there = T.min(PAGE, seen - part * PAGE)
            with T.serial(0, self.members // heads.group) as head:
                if heads.group == 1:
                    work(head, part, there, lambda position, piece: read(part, head, position, piece))
                    return
                with T.serial(0, there) as position:
                    for piece in range(heads.vectors):
                        T.buffer_store(self.unpacked, read(part, head, position, piece), [position, lanes(piece)])
                with T.serial(0, heads.group) as member:
                    unpacked = lambda position, piece: self.unpacked[position, lanes(piece)]  # noqa: E731
                    work(head * heads.group + member, part, there, unpacked)

    def _score(self, member, part, there, key):
        with T.serial(0, there) as position:
            products = [self.query[member, lanes(piece)] * key(position, piece) for piece in range(self.heads.vectors)]
            chains = [sum(products[at + 2 :: 2], products[at]) for at in range(min(2, len(products)))]
            T.buffer_store(self.sums, joined(chains, lambda a, b: a + b), [0, lanes(0)])
            score = joined([self.sums[0, lane] for lane in range(LANES)], lambda a, b: a + b)
            T.buffer_store(self.scores, score, [member, part * PAGE + position])

    def _weigh(self, member, parts):
        """Scores become weights of the largest so far."""
        T.buffer_store(self.several, self.scores[member, wide(0)], [wide(0)])
        with T.serial(0, parts - 1) as part:
            T.buffer_store(self.several, T.max(self.several[wide(0)], self.scores[member, wide(part + 1)]), [wide(0)])
        largest = joined([self.several[at] for at in range(WIDE)], T.max)
        T.buffer_store(self.change, T.max(self.state[member, 0], largest), [0])
        T.buffer_store(self.change, power_of_two(self.state[member, 0] - self.change[0], 1), [1])
        T.buffer_store(self.state, self.change[0], [member, 0])
        T.buffer_store(self.several, T.broadcast(T.float32(0), WIDE), [wide(0)])
        with T.serial(0, parts) as part:
            below = self.scores[member, wide(part)] - T.broadcast(self.change[0], WIDE)
            T.buffer_store(self.scores, power_of_two(below, WIDE), [member, wide(part)])
            T.buffer_store(self.several, self.several[wide(0)] + self.scores[member, wide(part)], [wide(0)])
        weights = joined([self.several[at] for at in range(WIDE)], lambda a, b: a + b)
        T.buffer_store(self.state, self.state[member, 1] * self.change[1] + weights, [member, 1])
        for piece in range(self.heads.vectors):
            older = self.total[member, lanes(piece)] * T.broadcast(self.change[1], LANES)
            T.buffer_store(self.total, older, [member, lanes(piece)])

    def _add_values(self, member, part, there, value):
        for first in range(0, self.heads.vectors, AT_ONCE):
            pieces = range(first, min(first + AT_ONCE, self.heads.vectors))
            for at, piece in enumerate(pieces):
                T.buffer_store(self.sums, self.total[member, lanes(piece)], [at, lanes(0)])
            with T.serial(0, there) as position:
                weight = T.broadcast(self.scores[member, part * PAGE + position], LANES)
                for at, piece in enumerate(pieces):
                    T.buffer_store(self.sums, self.sums[at, lanes(0)] + weight * value(position, piece), [at, lanes(0)])
            for at, piece in enumerate(pieces):
                T.buffer_store(self.total, self.sums[at, lanes(0)], [member, lanes(piece)])

    def end(self, row, first, output, lse):
        """Write the row's output (row, head, size) and base-2 log-sum-exp (row, head) from the head ``first`` on."""
        with T.serial(0, self.members) as member:
            for piece in range(self.heads.vectors):
                share = self.total[member, lanes(piece)] / T.broadcast(self.state[member, 1], LANES)
                T.buffer_store(output, T.Cast(f"{self.heads.dtype}x{LANES}", share), [row, first + member, lanes(piece)])
            T.buffer_store(lse, self.state[member, 0] + T.log2(self.state[member, 1]), [row, first + member])


def softmax(heads, most, together):
    """Its buffers, in the block that is being written, of ``together`` heads of keys, at most ``most``."""
    rows = most * heads.group
    row = rows, heads.size
    sizes = row, row, (rows, 2), (rows, BLOCK), (PAGE, heads.size), (WIDE,), (AT_ONCE, LANES), (2,)
    return Softmax(heads, together * heads.group, *(T.sblock_alloc_buffer(size, "float32") for size in sizes))


def vector(buffer, *place):
    """float32: a vector of what the buffer holds there."""
    return T.Cast(f"float32x{LANES}", buffer[place])


def attend_pages(heads, most, together, row, head, seen, first, q, pages, page_values, output, lse, scale):
    """Write the attention of one row and ``together`` heads of keys, at most ``most``, to ``seen`` positions of the pages from
    ``first`` on.
    """
    state = softmax(heads, most, together)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(side, part, number, position, piece):
            page = page_values[first + block * (BLOCK // PAGE) + part]
            if piece * LANES * heads.item_bytes % LINE == 0:
                T.evaluate(ask(pages[page, side, head + number, position, piece * LANES + AHEAD // heads.item_bytes]))
            return vector(pages, page, side, head + number, position, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, 0), partial(read, 1))
    state.end(row, query, output, lse)


def decode_kernel(heads: Heads) -> tirx.PrimFunc:
    """One row of each sequence, to all positions in its pages."""
    sizes = (heads.queries, heads.keys, heads.size)
    n_queries, n_keys, size = sizes
    dtype = heads.dtype

    @T.prim_func(s_tir=True)
    def decode(
        a: T.handle,
        b: T.handle,
        c: T.handle,
        d: T.handle,
        e: T.handle,
        f: T.handle,
        g: T.handle,
        h: T.handle,
        i: T.handle,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
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
        # heads of keys that one core takes, and its shares of a row
        share = T.sblock_alloc_buffer((2,), "int32")
        share[0] = (n_keys + T.call_packed("runtime.NumThreads") - 1) // T.call_packed("runtime.NumThreads")
        share[1] = (n_keys + share[0] - 1) // share[0]
        for item in T.parallel(batch * share[1]):
            with T.sblock("attention"):
                T.reads(q[0:batch, 0:n_queries, 0:size], pages[0:all_pages, 0:2, 0:n_keys, 0:PAGE, 0:size])
                T.writes(output[0:batch, 0:n_queries, 0:size], lse[0:batch, 0:n_queries])
                place = T.sblock_alloc_buffer((2,), "int32")
                place[0] = item % share[1] * share[0]
                place[1] = T.min(share[0], n_keys - place[0])
                row: T.let[T.int32] = item // share[1]
                first: T.let[T.int32] = page_indptr[row]
                count: T.let[T.int32] = page_indptr[row + 1] - first
                seen: T.let[T.int32] = T.if_then_else(count > 0, (count - 1) * PAGE + last_page[row], 0)
                attend_pages(
                    heads, n_keys, place[1], row, place[0], seen, first, q, pages, page_values, output, lse, sm_scale
                )

    return decode


def paged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to all positions in its pages or, causal, to those up to their own, of which the last is the last."""
    n_queries, n_keys, size, dtype = heads.queries, heads.keys, heads.size, heads.dtype

    @T.prim_func(s_tir=True)
    def paged(
        a: T.handle,
        b: T.handle,
        c: T.handle,
        d: T.handle,
        e: T.handle,
        f: T.handle,
        g: T.handle,
        h: T.handle,
        i: T.handle,
        j: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ):
        T.func_attr({"tirx.is_scheduled": True})
        batch, rows, values, all_pages = T.int32(), T.int32(), T.int32(), T.int32()
        offset_1, offset_2, offset_3, offset_4, offset_5, offset_6 = (
            T.int32(),
            T.int32(),
            T.int32(),
            T.int32(),
            T.int32(),
            T.int32(),
        )
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
                    seen: T.let[T.int32] = T.if_then_else(
                        causal > 0, T.min(length, T.max(0, length - own + index + 1)), length
                    )
                    row: T.let[T.int32] = q_indptr[sequence] + index
                    attend_pages(heads, 1, 1, row, head, seen, first, q, pages, page_values, output, lse, sm_scale)

    return paged


def ragged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to the keys and values of as many rows as are given or, causal, to those up to their own."""
    n_queries, n_keys, size, dtype = heads.queries, heads.keys, heads.size, heads.dtype

    @T.prim_func(s_tir=True)
    def ragged(
        a: T.handle,
        b: T.handle,
        c: T.handle,
        d: T.handle,
        e: T.handle,
        f: T.handle,
        g: T.handle,
        h: T.handle,
        i: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
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
                    T.reads(
                        q[0:rows, 0:n_queries, 0:size], k[0:positions, 0:n_keys, 0:size], v[0:positions, 0:n_keys, 0:size]
                    )
                    T.writes(output[0:rows, 0:n_queries, 0:size], lse[0:rows, 0:n_queries])
                    own: T.let[T.int32] = q_indptr[sequence + 1] - q_indptr[sequence]
                    index: T.let[T.int32] = item // n_keys
                    head: T.let[T.int32] = item % n_keys
                    length: T.let[T.int32] = k_indptr[sequence + 1] - k_indptr[sequence]
                    seen: T.let[T.int32] = T.if_then_else(
                        causal > 0, T.min(length, T.max(0, length - own + index + 1)), length
                    )
                    attend_rows(
                        heads, q_indptr[sequence] + index, head, seen, k_indptr[sequence], q, k, v, output, lse, sm_scale
                    )

    return ragged


def attend_rows(heads, row, head, seen, first, q, k, v, output, lse, scale):
    """Write the attention of one row and one head of keys to ``seen`` rows of keys and values from ``first`` on."""
    state = softmax(heads, 1, 1)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(rows, part, number, position, piece):
            return vector(rows, first + block * BLOCK + part * PAGE + position, head + number, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, k), partial(read, v))
    state.end(row, query, output, lse)
