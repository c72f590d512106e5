"""Shape functions whose statements stand in the order of their slots, whatever addresses the compiler's objects had.

``VMShapeLower`` gathers the sizes to compute in a map that it walks in the order of its hashes, and the hash of a symbolic
size depends on where the size's variable lies in memory (apache/tvm, src/relax/backend/vm/vm_shape_lower.cc; seen in
apache-tvm 0.27.0.post1). So the stores of a shape function came in another order from run to run, and with them a few
instructions of the library. The stores are independent: each reads the slots of variables, none that of another store.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.ir import IRModule

from export.backends.mlc.passes.base import ModulePass, Part

PREFIX = "shape_func"
"""How ``VMShapeLower`` names the functions that it makes."""

OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value")
"""Where an arithmetic expression keeps what it works on, beside ``args``."""


class SortShapeFunctions(ModulePass):
    """Sorts the stores of every shape function by the slot that they fill."""

    changes = frozenset({Part.KERNELS})

    def rewrite(self, mod: IRModule) -> IRModule:
        for variable, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc) and variable.name_hint.startswith(PREFIX):
                mod[variable] = function.with_body(in_order(function.body))
        return mod


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
