"""The numbers that a library gives when it creates its key/value cache, as every TVM of the phone's engine takes them."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import IRModule

from export.compilation.module_pass import ModulePass, Part
from runtime_py.backends.mlc import CACHE_NUMBERS

CREATE = "vm.builtin.paged_attention_kv_cache_create"


class CreateCacheWithFiveNumbers(ModulePass):
    """Leaves the sixth number of the call that creates the cache out.

    apache-tvm 0.27 writes six, the last a window for layers of the kind ``mha_sliding`` (apache/tvm #20121), and its runtime
    takes five or six. Every TVM that a revision of mlc-llm pins takes five (``cache_config.size()`` in
    src/runtime/vm/paged_kv_cache.cc). No layer of ours slides, so nothing is lost, and one library loads in both.
    """

    changes = frozenset({Part.FUNCTIONS})

    def __init__(self, function: str) -> None:
        self.function = function

    def rewrite(self, mod: IRModule) -> IRModule:
        shortener = _Shortener()
        mod[self.function] = shortener.visit_expr(mod[self.function])
        if shortener.calls != 1:
            raise AssertionError(f"{self.function} creates {shortener.calls} caches; 1 was expected")
        return mod


@relax.expr_functor.mutator
class _Shortener(relax.PyExprMutator):
    """Counts the calls it has shortened."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        pure = call.op == tvm.ir.Op.get("relax.call_pure_packed")
        if not (pure and isinstance(call.args[0], relax.ExternFunc) and call.args[0].global_symbol == CREATE):
            return call
        self.calls += 1
        numbers = list(call.args[1].values)
        if len(numbers) != CACHE_NUMBERS + 1:
            raise AssertionError(f"{CREATE} is given {len(numbers)} numbers; {CACHE_NUMBERS + 1} were expected")
        arguments = [call.args[0], relax.ShapeExpr(numbers[:CACHE_NUMBERS]), *call.args[2:]]
        return relax.Call(call.op, arguments, call.attrs, call.ty_args, call.span)
