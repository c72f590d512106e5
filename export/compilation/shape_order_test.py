"""Stores of a shape function are sorted, and only where their order does not matter."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from export.compilation.shape_order import SortShapeFunctions, slot


def shape_function(*stores: tuple[int, int]) -> tirx.PrimFunc:
    """A function that fills slot ``into`` with 3 times slot ``source``, for each (into, source)."""
    heap = tirx.decl_buffer((8,), "int64", name="H")
    body = [tirx.BufferStore(heap, tirx.BufferLoad(heap, [source]) * 3, [into]) for into, source in stores]
    return tirx.PrimFunc([heap], tirx.SeqStmt(body))


def sorted_module(function: tirx.PrimFunc, name: str = "shape_func") -> IRModule:
    return SortShapeFunctions()(IRModule({tvm.ir.GlobalVar(name): function}))


def test_stores_are_in_the_order_of_their_slots() -> None:
    function = shape_function((3, 1), (5, 0), (2, 1))
    sorted_once = sorted_module(function)["shape_func"]
    assert [slot(store) for store in sorted_once.body.seq] == [2, 3, 5]
    again = sorted_module(sorted_once)["shape_func"]
    assert tvm_ffi.structural_equal(sorted_once, again)


def test_other_functions_stay_as_they_are() -> None:
    function = shape_function((3, 1), (2, 1))
    assert sorted_module(function, "multiply")["multiply"].same_as(function)


def test_stores_that_depend_on_one_another_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"slot 3 is computed from the computed slots \[2\]"):
        sorted_module(shape_function((3, 2), (2, 1)))


def test_functions_that_are_equal_then_are_one_and_numbers_follow_each_other() -> None:
    """Two orders of the same stores: in some runs the compiler meets them alike and makes one function."""
    one, other, third = shape_function((3, 1), (2, 1)), shape_function((2, 1), (3, 1)), shape_function((4, 1), (5, 1))
    made = [tvm.ir.GlobalVar(f"shape_func{number or ''}") for number in range(3)]
    twice = SortShapeFunctions()(IRModule(dict(zip(made, (one, other, third), strict=True))))
    once = SortShapeFunctions()(IRModule({made[0]: other, made[1]: third}))
    assert sorted(variable.name_hint for variable in twice.get_global_vars()) == ["shape_func", "shape_func1"]
    for name in ("shape_func", "shape_func1"):
        assert tvm_ffi.structural_equal(twice[name], once[name])


def test_who_called_a_function_that_is_gone_calls_its_equal() -> None:
    @I.ir_module
    class Module:
        @T.prim_func(private=True, s_tir=True)
        def shape_func(heap: T.Buffer((8,), "int64")):  # type: ignore[valid-type]
            heap[2] = heap[1] * T.int64(3)

        @T.prim_func(private=True, s_tir=True)
        def shape_func1(heap: T.Buffer((8,), "int64")):  # type: ignore[valid-type]
            heap[2] = heap[1] * T.int64(3)

        @T.prim_func(private=True, s_tir=True)
        def shape_func2(heap: T.Buffer((8,), "int64")):  # type: ignore[valid-type]
            heap[4] = heap[1] * T.int64(5)

        @R.function(pure=False)
        def main(heap: R.Tensor((8,), "int64")) -> R.Tuple:  # type: ignore[valid-type]
            cls = Module
            _ = cls.shape_func1(heap)
            _1 = cls.shape_func2(heap)
            return R.tuple()

    after = SortShapeFunctions()(Module)
    (block,) = after["main"].body.blocks
    called = [binding.value.op.name_hint for binding in block.bindings if isinstance(binding.value.op, tvm.ir.GlobalVar)]
    assert called == ["shape_func", "shape_func1"]
    assert sorted(variable.name_hint for variable in after.get_global_vars()) == ["main", "shape_func", "shape_func1"]
