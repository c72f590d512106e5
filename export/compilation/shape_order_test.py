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


@pytest.mark.parametrize("place", ["right", "condition", "chosen", "otherwise", "argument", "converted"])
def test_what_a_store_reads_is_found_wherever_it_stands(place: str) -> None:
    heap = tirx.decl_buffer((8,), "int64", name="H")
    read, one = tirx.BufferLoad(heap, [2]), tirx.IntImm("int64", 1)
    value = {
        "right": one + read,
        "condition": tirx.Select(read > one, one, one + one),
        "chosen": tirx.Select(tirx.BufferLoad(heap, [1]) > one, read, one),
        "otherwise": tirx.Select(tirx.BufferLoad(heap, [1]) > one, one, read),
        "argument": tirx.call_pure_extern("int64", "f", one, read),
        "converted": tirx.Cast("int64", tirx.Cast("int32", read)),
    }[place]
    stores = [tirx.BufferStore(heap, value, [3]), tirx.BufferStore(heap, tirx.BufferLoad(heap, [1]), [2])]
    with pytest.raises(AssertionError, match=r"slot 3 is computed from the computed slots \[2\]"):
        sorted_module(tirx.PrimFunc([heap], tirx.SeqStmt(stores)))


def test_a_sequence_of_more_than_stores_stays_as_it_is() -> None:
    heap = tirx.decl_buffer((8,), "int64", name="H")
    stores = [tirx.BufferStore(heap, tirx.IntImm("int64", 0), [into]) for into in (3, 2)]
    body = tirx.SeqStmt([*stores, tirx.Evaluate(0)])
    assert sorted_module(tirx.PrimFunc([heap], body))["shape_func"].body.same_as(body)


def test_functions_keep_the_order_of_their_numbers() -> None:
    """By their names, the tenth would come before the second."""
    given = {f"shape_func{number}": shape_function((2, source), (3, 0)) for number, source in (("10", 4), ("2", 5), ("", 1))}
    named = {tvm.ir.GlobalVar(name): function.with_attr("global_symbol", name) for name, function in given.items()}
    again = tvm.ir.GlobalVar("shape_func11")
    after = SortShapeFunctions()(IRModule({**named, again: given["shape_func2"].with_attr("global_symbol", "shape_func11")}))
    read = {variable.name_hint: int(after[variable].body.seq[0].value.a.indices[0]) for variable in after.get_global_vars()}
    assert read == {"shape_func": 1, "shape_func1": 5, "shape_func2": 4}


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
