"""Shape functions whose statements stand in the order of their slots, whatever addresses the compiler's objects had.

``VMShapeLower`` gathers the sizes to compute in a map that it walks in the order of its hashes, and the hash of a symbolic
size depends on where the size's variable lies in memory (apache/tvm, src/relax/backend/vm/vm_shape_lower.cc; seen in
apache-tvm 0.27.0.post1). So the stores of a shape function came in another order from run to run, and with them a few
instructions of the library; and two functions that compute the same were one in those runs in which their stores happened to
come in one order. The stores are independent: each reads the slots of variables, none that of another store.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import IRModule

from export.compilation.module_pass import ModulePass, Part

PREFIX = "shape_func"
"""How ``VMShapeLower`` names the functions that it makes."""

OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value")
"""Where an arithmetic expression keeps what it works on, beside ``args``."""


class SortShapeFunctions(ModulePass):
    """Sorts the stores of every shape function by the slot that they fill, and keeps one of those that are equal then."""

    changes = frozenset({Part.FUNCTIONS, Part.KERNELS, Part.NAMES})

    def rewrite(self, mod: IRModule) -> IRModule:
        kept: list[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]] = []
        called: dict[str, tvm.ir.GlobalVar] = {}
        for variable in sorted(filter(is_shape_function, mod.get_global_vars()), key=number):
            function = mod[variable].with_body(in_order(mod[variable].body))
            one = next((other for other, body in kept if alike(function, body)), None)
            del mod[variable]
            if one is None:
                one = variable if number(variable) == len(kept) else renamed(variable, len(kept))
                kept.append((one, function))
                mod[one] = function
            if one is not variable:
                called[variable.name_hint] = one
        if called:
            for variable, function in mod.functions_items():
                if isinstance(function, relax.Function):
                    mod[variable] = Called(called).visit_expr(function)
        return mod


def renamed(variable: tvm.ir.GlobalVar, place: int) -> tvm.ir.GlobalVar:
    """The same with the number ``place``."""
    made = tvm.ir.GlobalVar(f"{PREFIX}{place or ''}")
    relax.expr._update_type(made, variable.ty)
    return made


@relax.expr_functor.mutator
class Called(relax.PyExprMutator):
    """Calls other functions in the place of those that are named."""

    def __init__(self, names: Mapping[str, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self.names = names

    def visit_global_var_(self, variable: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self.names.get(variable.name_hint, variable)


def is_shape_function(variable: tvm.ir.GlobalVar) -> bool:
    """By its name: what `PREFIX` says, and a number or nothing."""
    return variable.name_hint.removeprefix(PREFIX).isdecimal() or variable.name_hint == PREFIX


def number(variable: tvm.ir.GlobalVar) -> int:
    """Of a shape function, in the order in which they were made."""
    return int(variable.name_hint.removeprefix(PREFIX) or 0)


def alike(one: tirx.PrimFunc, other: tirx.PrimFunc) -> bool:
    """Whether two functions compute the same under whatever names."""
    return tvm_ffi.structural_equal(one.without_attr("global_symbol"), other.without_attr("global_symbol"))


def in_order(body: tirx.Stmt) -> tirx.Stmt:
    """The stores of a sequence by slot; a body that is no sequence of stores as it is.

    Raises:
        AssertionError: a store reads a slot that another one fills, so that their order matters.
    """
    if not isinstance(body, tirx.SeqStmt) or not all(isinstance(part, tirx.BufferStore) for part in body.seq):
        return body
    stores = sorted(body.seq, key=slot)
    filled = {slot(store) for store in stores}
    for store in stores:
        read = slots_read(store.value) & filled
        assert not read, f"slot {slot(store)} is computed from the computed slots {sorted(read)}"
    return tirx.SeqStmt(stores)


def slot(store: tirx.BufferStore) -> int:
    """Index of the element that a store fills."""
    return int(store.indices[0])


def slots_read(value: tirx.Expr) -> set[int]:
    """Indices of all elements that an expression loads."""
    if isinstance(value, tvm.ir.TensorLoad):
        return {int(value.indices[0])}
    operands = [getattr(value, name) for name in OPERANDS if hasattr(value, name)]
    operands += getattr(value, "args", ())
    return set().union(*(slots_read(operand) for operand in operands if isinstance(operand, tirx.Expr)))
