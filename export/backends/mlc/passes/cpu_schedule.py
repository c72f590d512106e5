"""Schedules of the x86 and arm64 host build: products with int4 codes are written anew (`passes.row_product`).

Others, of whole weights and where there are no byte instructions, take strips of a weight, each made once for all rows.
What gates a layer's products is shared out over the cores.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, te, tirx
from tvm.target import Target

from export.backends.mlc.passes.row_norms import with_row_norm
from export.backends.mlc.passes.row_product import with_row_product
from export.compilation.module_pass import ModulePass, Part
from export.processor.byte_products import ByteProducts, byte_products
from export.processor.row_kernels import silu

PARTS = 4
"""Of a row of gated products."""

STRIP = 32
"""Output columns of one strip: four vectors of eight float32 sums, which stay in registers."""


def _silu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """In float32, by a power that a compiler writes in vectors; TVM's calls the C library for every number."""

    def kernel(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *at: silu(x(*at).astype("float32"), 1).astype(x.dtype), name="silu")

    return builder.call_te(kernel, call.args[0], primfunc_name_hint="silu")


OPERATORS = {"relax.nn.silu": _silu}
"""What is written otherwise than TVM does, before kernels are fused."""


class ScheduleForCpu(ModulePass):
    """Tiles the products that export.backends.mlc.blocks.linear writes, shares gates and norms out; the rest stays as it is.

    Each sum of a strip still runs over k from first to last, so the numbers are those of the plain loops. A 2304 to 5760
    layer of 96 rows takes 0.06 s of one core where the plain loops take 2.0 s. Products with int4 codes run in another order
    and in fixed-point numbers, where ``target`` has the instructions.
    """

    changes = frozenset({Part.KERNELS})

    def __init__(self, target: Target) -> None:
        self.byte = byte_products(target)

    def rewrite(self, mod: tvm.ir.IRModule) -> tvm.ir.IRModule:
        for variable, function in mod.functions_items():
            if _is_product(variable, function):
                mod[variable] = _scheduled(function, self.byte)
            elif isinstance(function, tirx.PrimFunc) and "silu" in variable.name_hint:
                mod[variable] = _shared_out(function)
            elif isinstance(function, tirx.PrimFunc) and "norm" in variable.name_hint:
                mod[variable] = with_row_norm(function)
        return mod


class SetAside(ModulePass):
    """Keeps products as they are before they get their loops; the module stays as it is.

    Attributes:
        products: by name.
    """

    changes = frozenset()

    def __init__(self) -> None:
        self.products: dict[str, tirx.PrimFunc] = {}

    def rewrite(self, mod: tvm.ir.IRModule) -> tvm.ir.IRModule:
        self.products = {
            variable.name_hint: function for variable, function in mod.functions_items() if _is_product(variable, function)
        }
        return mod

    def scheduled(self, target: Target) -> tvm.ir.IRModule:
        """Those with int4 codes, by the byte instructions of ``target``, as functions that are called by their names."""
        byte = byte_products(target)
        assert byte is not None
        made = {name: with_row_product(function, byte) for name, function in sorted(self.products.items())}
        return tvm.ir.IRModule(
            {name: function.with_attr("global_symbol", name) for name, function in made.items() if function is not None}
        )


def _is_product(variable: tvm.ir.GlobalVar, function: Any) -> bool:
    return isinstance(function, tirx.PrimFunc) and "matmul" in variable.name_hint


def _scheduled(function: tirx.PrimFunc, byte: ByteProducts | None) -> tirx.PrimFunc:
    row = None if byte is None else with_row_product(function, byte)
    return _tiled(function) if row is None else row


def _shared_out(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """A gate of several steps, element by element, in one loop nest over (1, tokens, columns): the same numbers."""
    schedule = s_tir.Schedule(function)
    *steps, last = schedule.get_child_blocks(schedule.get_sblock("root"))
    loops = schedule.get_loops(last)
    columns = schedule.get(loops[-1]).extent
    alike = [len(schedule.get(block).iter_vars) == len(loops) for block in (*steps, last)]
    if len(loops) != 3 or not all(alike) or not isinstance(columns, tirx.IntImm) or int(columns) % PARTS:
        return function
    for block in steps:
        schedule.compute_inline(block)
    part, _ = schedule.split(loops[-1], [PARTS, None])
    schedule.parallel(schedule.fuse(*loops[:-1], part))
    return schedule.mod["main"]


def _tiled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Strips of output columns over the cores, each with its part of the weight as float values, transposed."""
    schedule = s_tir.Schedule(function)
    names = {schedule.get(block).name_hint for block in schedule.get_child_blocks(schedule.get_sblock("root"))}
    if "matmul" not in names or not _weighted(schedule.get(schedule.get_sblock("matmul"))):
        return function
    product = schedule.get_sblock("matmul")
    weight = _strip_source(schedule, product, "dequantise" in names)
    batch, row, column, k = schedule.get_loops(product)
    strip, lane = schedule.split(column, [None, STRIP])
    schedule.reorder(strip, batch, row, k, lane)
    schedule.compute_at(weight, strip)
    schedule.transform_layout(weight, ("write", 0), lambda n, k: (k, n))
    sums = schedule.cache_write(product, 0, "global")
    schedule.reverse_compute_at(sums, row)
    schedule.vectorize(schedule.get_loops(sums)[-1])
    schedule.vectorize(lane)
    schedule.parallel(strip)
    schedule.decompose_reduction(product, k)
    return schedule.mod["main"]


def _weighted(product: tirx.SBlock) -> bool:
    """Whether this is x (batch, tokens, k) times a matrix (n, k) of fixed size, as a linear layer's is."""
    loops, matrix = [variable.var for variable in product.iter_vars], product.reads[1]
    if len(loops) != 4 or len(matrix.region) != 2:
        return False
    fixed = all(isinstance(size, tirx.IntImm) for size in matrix.source.shape)
    return fixed and matrix.region[0].min.same_as(loops[2]) and matrix.region[1].min.same_as(loops[3])


def _strip_source(schedule: s_tir.Schedule, product: s_tir.schedule.SBlockRV, int4: bool) -> s_tir.schedule.SBlockRV:
    """The block that writes the weight as the product reads it; rows of zeros make up a last strip that is not full."""
    rows = int(schedule.get(product).reads[1].source.shape[0])
    if rows % STRIP:
        schedule.pad_einsum(product, [1, 1, STRIP, 1])
        if int4:
            schedule.compute_inline(schedule.get_sblock("dequantise"))
        return schedule.get_producers(product)[0]
    return schedule.get_sblock("dequantise") if int4 else schedule.cache_read(product, 1, "global")
