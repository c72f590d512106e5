"""A module's functions come in the order of their names, and stay what they are."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import IRModule

from export.compilation.function_order import SortFunctions


def held(mod: IRModule) -> list[str]:
    """Names in the order in which the module holds them; `functions_items` would sort them."""
    return [variable.name_hint for variable in mod.functions]


def test_functions_are_in_the_order_of_their_names() -> None:
    names = ["prefill", "_metadata", "matmul2", "decode", "matmul"]
    functions = {tvm.ir.GlobalVar(name): tirx.PrimFunc([], tirx.Evaluate(0)) for name in names}
    mod = IRModule(functions, attrs={"system_lib_prefix": "x"})
    after = SortFunctions()(mod)
    assert held(mod) == names and held(after) == sorted(names)
    assert after.attrs["system_lib_prefix"] == "x"
    for variable, function in functions.items():
        assert after[variable.name_hint].same_as(function)
