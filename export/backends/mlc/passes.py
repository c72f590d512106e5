"""The compilation pipeline from a Relax module to virtual machine code, and two small passes of our own.

The order is that of mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/pipeline.py, without the passes for CUDA, tensor
parallelism and speculative decoding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprVisitor, visitor
from tvm.s_tir import dlight as dl
from tvm.target import Target

LOG = logging.getLogger(__name__)

BATCHED = "attention_"
"""Kernels scheduled for a plain OpenCL device: with TVM 0.27's Android schedule a product over heads of a symbolic length
becomes OpenCL C that does not compile (a statement is written inside a vector load)."""

LIMITS = ("max_threads_per_block", "max_shared_memory_per_block", "thread_warp_size")

BOUNDED = ("seq_len", "batch_size", "total_seq_len")
"""Symbolic sizes with a known limit, so that their buffers are planned once."""


def pipeline(target: Target, schedule: Target, bounds: dict[str, int], metadata: dict[str, Any]) -> tvm.transform.Pass:
    """All passes.

    Args:
        target: what is built for.
        schedule: target whose kernel schedules are used; differs where TVM's scheduler fails for ``target``.
        bounds: largest value of each symbolic size in BOUNDED.
        metadata: becomes ``_metadata``, with ``memory_usage`` added.
    """
    device = target.kind.name != "llvm"

    @tvm.transform.module_pass(opt_level=0, name="EdgeproofMlc")
    def run(mod: tvm.ir.IRModule, _context: tvm.transform.PassContext) -> tvm.ir.IRModule:
        mod = _schedule(lowered(bounds)(mod), schedule, device)
        return tvm.transform.Sequential(
            [
                tirx.transform.ForceNarrowIndexToInt32(),
                memory_planned(),
                _attach_metadata(metadata),
                relax.transform.LowerAllocTensor(),
                relax.transform.KillAfterLastUse(),
                relax.transform.LowerRuntimeBuiltin(),
                relax.transform.VMShapeLower(),
                relax.transform.AttachGlobalSymbol(),
            ]
        )(mod)

    return run


def lowered(bounds: dict[str, int]) -> tvm.transform.Pass:
    """Operators become fused kernels, not yet scheduled."""
    return tvm.transform.Sequential(
        [
            _annotate(bounds),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )


def memory_planned() -> tvm.transform.Pass:
    """Every buffer gets its place in a storage that others share."""
    return tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )


def _schedule(mod: tvm.ir.IRModule, schedule: Target, device: bool) -> tvm.ir.IRModule:
    if not device:
        from export.backends.mlc.cpu_schedule import ScheduleForCpu

        return ScheduleForCpu()(mod)
    chosen = (dl.gpu.Matmul(), dl.gpu.GEMV(), dl.gpu.Reduction(), dl.gpu.GeneralReduction())
    rules = (*(_WhereItHolds(rule) for rule in chosen), dl.gpu.Fallback())
    batched = {gv.name_hint for gv in mod.get_global_vars() if gv.name_hint.startswith(BATCHED)}
    plain = Target({"kind": "opencl", **{key: schedule.attrs[key] for key in LIMITS if key in schedule.attrs}})
    with plain:
        scheduled = dl.ApplyDefaultSchedule(*rules)(_only(mod, batched))
    for variable, function in scheduled.functions_items():
        mod[mod.get_global_var(variable.name_hint)] = function
    with schedule:
        return dl.ApplyDefaultSchedule(*rules)(mod)


class _WhereItHolds(dl.base.ScheduleRule):
    """A schedule rule that passes a kernel on to the next rule where its own assertions do not hold.

    dlight's GEMV and Reduction assert that what follows a reduction reads whole blocks
    (tvm/s_tir/dlight/analysis/common_analysis.py); some fused products of narrow low-rank adapters do not.
    """

    def __init__(self, rule: dl.base.ScheduleRule) -> None:
        self.rule = rule

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> Any:
        try:
            return self.rule.apply(func, target, tunable)
        except (AssertionError, ValueError, RuntimeError) as error:
            LOG.debug("%s left a kernel to the next rule: %s", type(self.rule).__name__, error)
            return None


def _only(mod: tvm.ir.IRModule, names: set[str]) -> tvm.ir.IRModule:
    """A module of the named functions."""
    return tvm.ir.IRModule({gv: function for gv, function in mod.functions_items() if gv.name_hint in names})


def _annotate(bounds: dict[str, int]) -> tvm.transform.Pass:
    @tvm.transform.module_pass(opt_level=0, name="AnnotateBounds")
    def run(mod: tvm.ir.IRModule, _context: tvm.transform.PassContext) -> tvm.ir.IRModule:
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function):
                mod[variable] = function.with_attr("tir_var_upper_bound", bounds).with_attr(
                    "relax.memory_plan_dynamic_func_output", True
                )
        return mod

    return run


def _attach_metadata(metadata: dict[str, Any]) -> tvm.transform.Pass:
    @tvm.transform.module_pass(opt_level=0, name="AttachMetadata")
    def run(mod: tvm.ir.IRModule, _context: tvm.transform.PassContext) -> tvm.ir.IRModule:
        metadata["memory_usage"] = memory_usage(mod)
        builder = relax.BlockBuilder()
        with builder.function("_metadata", params=[]):
            builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
        mod["_metadata"] = builder.finalize()["_metadata"]
        return mod

    return run


def memory_usage(mod: tvm.ir.IRModule) -> dict[str, int]:
    """Bytes of planned buffers per function."""
    found = {}
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function):
            counter = _Allocations()
            counter.visit_expr(function)
            found[variable.name_hint] = counter.total
    return dict(sorted(found.items()))


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
