"""Attention on a processor, over the paged cache and among the rows of a call, in vectors and on all cores.

TVM's own kernels (apache-tvm 0.27.0.post1, relax/frontend/nn/llm/_decode_kernels.py and _prefill_kernels.py) take one
number at a time on one core, and those of a prompt walk through every page of the cache for every row. Here a block of
positions is scored at once, with the running maximum and sum of an online softmax; keys that a row may not see are not
read. Arguments and meaning are TVM's, but that a cache which rotates keys when they are read is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.ir import IRModule
from tvm.script import tirx as T
from tvm.script.ir_builder.tirx import arg

from export.compilation.module_pass import ModulePass, Part, require_kernels
from export.processor.kernel_frame import array, kernel, named, sizes, whole_of
from export.processor.online_softmax import BLOCK, LANES, PAGE, Heads, lanes
from export.processor.paged_softmax import paged_softmax
from export.processor.vectors import FIRST, LINE, Index, prefetch
from export.specs import DecoderSpec

AHEAD = 4096
"""Bytes from what is read to what memory is asked for."""

DECODE, PAGED, RAGGED = "batch_decode_paged_kv_cpu", "batch_prefill_paged_kv_cpu", "batch_prefill_ragged_kv"


class AttendOnProcessor(ModulePass):
    """Replaces TVM's kernels for processors, where a head is whole vectors wide; those of sliding windows and trees stay."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self.heads = Heads(spec.heads, spec.kv_heads, spec.head_dim, dtype)

    def requires(self, mod: IRModule) -> None:
        """Raise AssertionError when this TVM version calls the kernels differently."""
        require_kernels(mod, {DECODE: 13, PAGED: 15, RAGGED: 14})

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


def attend_pages(heads, most, together, row, head, seen, first, q, pages, to):
    """Write the attention of one row and ``together`` heads of keys, at most ``most``, to ``seen`` positions.

    Args:
        first: the place in ``pages.values`` of the first page's number.
    """
    state = paged_softmax(heads, most, together)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), to.scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(side, part, number, position, piece):
            page = pages.values[first + block * (BLOCK // PAGE) + part]
            if piece * LANES * heads.item_bytes % LINE == 0:
                T.evaluate(
                    prefetch(
                        pages.cache[page, side, head + number, position, piece * LANES + AHEAD // heads.item_bytes], FIRST
                    )
                )
            return vector(pages.cache, page, side, head + number, position, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, 0), partial(read, 1))
    state.end(row, query, to.output, to.lse)


def visible(length: tirx.Expr, own: tirx.Expr, index: tirx.Expr, causal: tirx.Expr) -> tirx.Expr:
    """How many of ``length`` positions a row sees, ``index`` of the last ``own``: all or, causal, those up to its own."""
    return T.if_then_else(causal > 0, T.min(length, T.max(0, length - own + index + 1)), length)


def integers(name: str, count: tirx.Expr) -> tirx.Buffer:
    """The next argument: int32, which begins where it likes."""
    return array(name, (count,), "int32", elem_offset=T.int32())


def let(name: str, value: tirx.Expr) -> tirx.Var:
    """A number that does not change."""
    return named(name, T.Bind(value))


@dataclass(frozen=True)
class Pages:
    """A cache: keys and values (pages, 2, heads, PAGE, size), and which pages each sequence has."""

    cache: tirx.Buffer
    indptr: tirx.Buffer
    values: tirx.Buffer
    last: tirx.Buffer

    @staticmethod
    def declared(heads: Heads, batch: tirx.Var) -> Pages:
        """The next arguments."""
        all_pages, count = sizes("all_pages", "values")
        cache = array("pages", (all_pages, 2, heads.keys, PAGE, heads.size), heads.dtype)
        indptr, values = integers("page_indptr", batch + 1), integers("page_values", count)
        made = Pages(cache, indptr, values, integers("last_page", batch))
        integers("_key_offsets", batch)
        return made

    def first_and_length(self, sequence: tirx.Expr) -> tuple[tirx.Var, tirx.Var]:
        """The place of a sequence's first page in ``values``, and its positions."""
        first = let("first", self.indptr[sequence])
        count = let("count", self.indptr[sequence + 1] - first)
        return first, let("length", T.if_then_else(count > 0, (count - 1) * PAGE + self.last[sequence], 0))


@dataclass(frozen=True)
class Outcome:
    """The last arguments of a kernel: what it writes, and numbers."""

    output: tirx.Buffer
    lse: tirx.Buffer
    scale: tirx.Var
    causal: tirx.Var | None

    @staticmethod
    def declared(heads: Heads, rows: tirx.Var, causal: bool, rotated: str) -> Outcome:
        """Args:
        causal: whether a number says that rows see none behind their own position.
        rotated: what is said where keys are to be rotated.
        """
        output = array("output", (rows, heads.queries, heads.size), heads.dtype)
        lse = array("lse", (rows, heads.queries), "float32")
        number = arg("causal", T.int32()) if causal else None
        mode = arg("rotary_mode", T.int32())
        *_, scale = (arg(name, T.float32()) for name in ("rope_scale", "rope_theta", "sm_scale"))
        with T.Assert(mode == 0, rotated):
            pass
        return Outcome(output, lse, scale, number)

    @contextmanager
    def block(self, *read: tirx.Buffer) -> Iterator[None]:
        """That writes it."""
        with T.sblock("attention"):
            T.reads(*map(whole_of, read))
            T.writes(whole_of(self.output), whole_of(self.lse))
            yield


def decode_kernel(heads: Heads) -> tirx.PrimFunc:
    """One row of each sequence, to all positions in its pages."""
    with kernel() as builder:
        (batch,), n_keys = sizes("batch"), heads.keys
        q = array("q", (batch, heads.queries, heads.size), heads.dtype)
        pages = Pages.declared(heads, batch)
        integers("_query_positions", batch)
        to = Outcome.declared(heads, batch, False, "this cache does not rotate keys when they are read")
        # heads of keys that one core takes, and its shares of a row
        share, threads = T.sblock_alloc_buffer((2,), "int32"), T.call_packed("runtime.NumThreads")
        T.buffer_store(share, (n_keys + threads - 1) // threads, [0])
        T.buffer_store(share, (n_keys + share[0] - 1) // share[0], [1])
        with T.parallel(0, batch * share[1]) as item, to.block(q, pages.cache):
            named("item", item)
            place = T.sblock_alloc_buffer((2,), "int32")
            T.buffer_store(place, item % share[1] * share[0], [0])
            T.buffer_store(place, T.min(share[0], n_keys - place[0]), [1])
            row = let("row", item // share[1])
            first, seen = pages.first_and_length(row)
            attend_pages(heads, n_keys, place[1], row, place[0], seen, first, q, pages, to)
    return builder.get()


@dataclass(frozen=True)
class SeveralRows:
    """Rows of each sequence, the first arguments of a kernel.

    Attributes:
        q: (rows, heads, size).
        indptr: where the rows of each sequence begin.
    """

    heads: Heads
    rows: tirx.Var
    batch: tirx.Var
    q: tirx.Buffer
    indptr: tirx.Buffer

    @staticmethod
    def declared(heads: Heads) -> SeveralRows:
        rows, batch = sizes("rows", "batch")
        q = array("q", (rows, heads.queries, heads.size), heads.dtype)
        return SeveralRows(heads, rows, batch, q, integers("q_indptr", batch + 1))

    @contextmanager
    def each(self, to: Outcome, *read: tirx.Buffer) -> Iterator[tuple[tirx.Var, tirx.Var, tirx.Var, tirx.Var]]:
        """A block of every row and head of keys: the sequence, its rows, the row's number among them, and the head."""
        keys = self.heads.keys
        with T.serial(0, self.batch) as sequence:
            own = self.indptr[sequence + 1] - self.indptr[sequence]
            with T.parallel(0, own * keys) as item, to.block(self.q, *read):
                named("item", item)
                yield sequence, let("own", own), let("index", item // keys), let("head", item % keys)


def paged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to all positions in its pages or, causal, those up to their own."""
    with kernel() as builder:
        several = SeveralRows.declared(heads)
        pages = Pages.declared(heads, several.batch)
        integers("_query_positions", several.rows)
        to = Outcome.declared(heads, several.rows, True, "this cache does not rotate keys when they are read")
        with several.each(to, pages.cache) as (sequence, own, index, head):
            first, length = pages.first_and_length(sequence)
            seen = let("seen", visible(length, own, index, to.causal))
            row = let("row", several.indptr[sequence] + index)
            attend_pages(heads, 1, 1, row, head, seen, first, several.q, pages, to)
    return builder.get()


def ragged_kernel(heads: Heads) -> tirx.PrimFunc:
    """Rows of each sequence, to the keys and values of as many rows as are given or, causal, to those up to their own."""
    with kernel() as builder:
        several = SeveralRows.declared(heads)
        (positions,) = sizes("positions")
        k, v = (array(name, (positions, heads.keys, heads.size), heads.dtype) for name in ("k", "v"))
        indptr = integers("k_indptr", several.batch + 1)
        integers("_query_positions", several.rows)
        integers("_key_offsets", several.batch)
        to = Outcome.declared(heads, several.rows, True, "keys are rotated before they come here")
        with several.each(to, k, v) as (sequence, own, index, head):
            length = let("length", indptr[sequence + 1] - indptr[sequence])
            seen = let("seen", visible(length, own, index, to.causal))
            attend_rows(heads, several.indptr[sequence] + index, head, seen, indptr[sequence], several.q, k, v, to)
    return builder.get()


def attend_rows(heads, row, head, seen, first, q, k, v, to):
    """Write the attention of one row and one head of keys to ``seen`` rows of keys and values from ``first`` on."""
    state = paged_softmax(heads, 1, 1)
    query = head * heads.group
    state.begin(lambda member, piece: vector(q, row, query + member, lanes(piece)), to.scale)
    with T.serial(0, (seen + BLOCK - 1) // BLOCK) as block:

        def read(rows, part, number, position, piece):
            return vector(rows, first + block * BLOCK + part * PAGE + position, head + number, lanes(piece))

        state.add(T.min(BLOCK, seen - block * BLOCK), partial(read, k), partial(read, v))
    state.end(row, query, to.output, to.lse)
