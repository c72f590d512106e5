"""Tells the memory planner how large each symbolic size can be."""

from __future__ import annotations

from collections.abc import Mapping

from tvm import relax
from tvm.ir import IRModule

from export.compilation.module_pass import ModulePass, Part


class AnnotateBounds(ModulePass):
    """Writes to every Relax function the largest value of each symbolic size that has one: buffers are then planned once."""

    changes = frozenset({Part.ANNOTATIONS})

    def __init__(self, bounds: Mapping[str, int]) -> None:
        self.bounds = dict(bounds)

    def rewrite(self, mod: IRModule) -> IRModule:
        for variable, function in mod.functions_items():
            if isinstance(function, relax.Function):
                # the second attribute has results of a symbolic size planned by their bound as well
                mod[variable] = function.with_attr("tir_var_upper_bound", self.bounds).with_attr(
                    "relax.memory_plan_dynamic_func_output", True
                )
        return mod
