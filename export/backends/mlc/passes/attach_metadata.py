"""What a library says about itself: its parameters, its limits, and the buffers that were planned for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprVisitor, visitor

from export.compilation.module_pass import ModulePass, Part

METADATA = "_metadata"


class AttachMetadata(ModulePass):
    """Adds the function ``_metadata``, which returns ``metadata`` as JSON; ``memory_usage`` is put into it first."""

    changes = frozenset({Part.NAMES})

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata

    def requires(self, mod: tvm.ir.IRModule) -> None:
        assert METADATA not in mod, f"the module has a function {METADATA} already"

    def rewrite(self, mod: tvm.ir.IRModule) -> tvm.ir.IRModule:
        self.metadata["memory_usage"] = memory_usage(mod)
        builder = relax.BlockBuilder()
        with builder.function(METADATA, params=[]):
            builder.emit_func_output(tvm.ir.StringImm(json.dumps(self.metadata)))
        mod[METADATA] = builder.finalize()[METADATA]
        return mod


def memory_usage(mod: tvm.ir.IRModule) -> dict[str, int]:
    """Bytes of planned buffers per function."""
    usage = {}
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function):
            counter = _Allocations()
            counter.visit_expr(function)
            usage[variable.name_hint] = counter.total
    return dict(sorted(usage.items()))


@visitor
class _Allocations(PyExprVisitor):
    """Adds up storages and tensors whose size is known."""

    def __init__(self) -> None:
        self.total = 0
        self.sizes: dict[Any, Callable[[relax.Call], int]] = {
            tvm.ir.Op.get("relax.builtin.alloc_tensor"): _tensor_bytes,
            tvm.ir.Op.get("relax.memory.alloc_storage"): lambda call: _product(call.args[0].values),
        }

    def visit_call_(self, call: relax.Call) -> None:
        for op, size in self.sizes.items():
            if call.op == op:
                self.total += size(call)
        super().visit_call_(call)


def _tensor_bytes(call: relax.Call) -> int:
    dtype = tvm.DataType(call.args[1].value)
    return _product(call.args[0].values) * ((dtype.bits + 7) // 8) * dtype.lanes


def _product(sizes: list[Any]) -> int:
    total = 1
    for size in sizes:
        if not isinstance(size, tirx.IntImm):
            return 0
        total *= size.value
    return total
