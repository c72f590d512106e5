"""Schedules of the kernels of a device build, by TVM's own rules where they hold."""

from __future__ import annotations

import logging
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import dlight as dl
from tvm.target import Target

from export.backends.mlc.passes.row_tiles import RowTiles
from export.backends.mlc.passes.tall_tiles import TallTiles
from export.compilation.module_pass import ModulePass, Part

LOG = logging.getLogger(__name__)

BATCHED = "attention_"
"""Kernels scheduled for a plain OpenCL device: with TVM 0.27's Android schedule a product over heads of a symbolic length
becomes OpenCL C that does not compile (a statement is written inside a vector load)."""

ROUTED = "run_decoder"
"""The function of a decoder that reads more than rows: it decodes too, one row a call (`function_list`)."""

LIMITS = ("max_threads_per_block", "max_shared_memory_per_block", "thread_warp_size")


class ScheduleBatched(ModulePass):
    """Schedules the products over heads for an OpenCL device with the limits of ``schedule`` and nothing else of it."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, schedule: Target) -> None:
        self.plain = Target({"kind": "opencl", **{key: schedule.attrs[key] for key in LIMITS if key in schedule.attrs}})

    def rewrite(self, mod: IRModule) -> IRModule:
        batched = {gv: function for gv, function in mod.functions_items() if gv.name_hint.startswith(BATCHED)}
        with self.plain:
            scheduled = dl.ApplyDefaultSchedule(*rules(prompts=False))(tvm.ir.IRModule(batched))
        for variable, function in scheduled.functions_items():
            mod[mod.get_global_var(variable.name_hint)] = function
        return mod


class ScheduleForDevice(ModulePass):
    """Schedules every kernel that has no schedule yet, for ``schedule``."""

    changes = frozenset({Part.KERNELS})

    def __init__(self, schedule: Target) -> None:
        self.schedule = schedule

    def rewrite(self, mod: IRModule) -> IRModule:
        prompts = all(variable.name_hint != ROUTED for variable in mod.get_global_vars())
        with self.schedule:
            return dl.ApplyDefaultSchedule(*rules(prompts))(mod)


def rules(prompts: bool) -> tuple[dl.base.ScheduleRule, ...]:
    """The rules in the order in which they are tried; the last takes every kernel.

    Args:
        prompts: whether a prompt's products have many rows (`TallTiles`).
    """
    chosen = (TallTiles(prompts), dl.gpu.Matmul(), RowTiles(), dl.gpu.GEMV(), dl.gpu.Reduction(), dl.gpu.GeneralReduction())
    return (*(_WhereItHolds(rule) for rule in chosen), dl.gpu.Fallback())


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
