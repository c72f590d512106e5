"""Attention on a processor, over the paged cache and among the rows of a call, in vectors and on all cores.

TVM's own kernels (apache-tvm 0.27.0.post1, relax/frontend/nn/llm/_decode_kernels.py and _prefill_kernels.py) take one
number at a time on one core, and those of a prompt walk through every page of the cache for every row. Here a block of
positions is scored at once, with the running maximum and sum of an online softmax; keys that a row may not see are not
read. Arguments and meaning are TVM's, but that a cache which rotates keys when they are read is refused.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T

from export.compilation.module_pass import ModulePass, Part
from export.processor.online_softmax import BLOCK, LANES, PAGE, Heads, lanes
from export.processor.paged_softmax import paged_softmax
from export.processor.vectors import LINE, Index, prefetch
from export.specs import DecoderSpec

AHEAD = 4096
"""Bytes from what is read to what memory is asked for."""

FIRST = 3
"""The cache that memory is asked into."""

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


def vector(buffer: tirx.Buffer, *place: Index) -> tirx.Expr:
    """float32: a vector of what the buffer holds there."""
    return T.Cast(f"float32x{LANES}", buffer[place])


def attend_pages(heads, most, together, row, head, seen, first, q, pages, page_values, output, lse, scale):
    """Write the attention of one row and ``together`` heads of keys, at most ``most``, to ``seen`` positions.

    Args:
        first: the place in ``page_values`` of the first page's number.
    """
    state = paged_softmax(heads, most, together)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(side, part, number, position, piece):
            page = page_values[first + block * (BLOCK // PAGE) + part]
            if piece * LANES * heads.item_bytes % LINE == 0:
                T.evaluate(
                    prefetch(pages[page, side, head + number, position, piece * LANES + AHEAD // heads.item_bytes], FIRST)
                )
            return vector(pages, page, side, head + number, position, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, 0), partial(read, 1))
    state.end(row, query, output, lse)


def visible(length: tirx.Expr, own: tirx.Expr, index: tirx.Expr, causal: tirx.Expr) -> tirx.Expr:
    """How many of ``length`` positions a row sees, ``index`` of the last ``own``: all or, causal, those up to its own."""
    return T.if_then_else(causal > 0, T.min(length, T.max(0, length - own + index + 1)), length)


def decode_kernel(heads: Heads) -> tirx.PrimFunc:
    """One row of each sequence, to all positions in its pages."""
    n_queries, n_keys, size, dtype = heads.queries, heads.keys, heads.size, heads.dtype

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
        _key_offsets = T.match_buffer(f, (batch,), "int32", elem_offset=offset_4)
        _query_positions = T.match_buffer(g, (batch,), "int32", elem_offset=offset_5)
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
    """Rows of each sequence, to all positions in its pages or, causal, those up to their own."""
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
        _key_offsets = T.match_buffer(g, (batch,), "int32", elem_offset=offset_5)
        _query_positions = T.match_buffer(h, (rows,), "int32", elem_offset=offset_6)
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
                    seen: T.let[T.int32] = visible(length, own, index, causal)
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
        _query_positions = T.match_buffer(f, (rows,), "int32", elem_offset=offset_3)
        _key_offsets = T.match_buffer(g, (batch,), "int32", elem_offset=offset_4)
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
                    seen: T.let[T.int32] = visible(length, own, index, causal)
                    attend_rows(
                        heads, q_indptr[sequence] + index, head, seen, k_indptr[sequence], q, k, v, output, lse, sm_scale
                    )

    return ragged


def attend_rows(heads, row, head, seen, first, q, k, v, output, lse, scale):
    """Write the attention of one row and one head of keys to ``seen`` rows of keys and values from ``first`` on."""
    state = paged_softmax(heads, 1, 1)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(rows, part, number, position, piece):
            return vector(rows, first + block * BLOCK + part * PAGE + position, head + number, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, k), partial(read, v))
    state.end(row, query, output, lse)
