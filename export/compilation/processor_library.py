"""A module whose kernels are scheduled as they are written, as a shared library for one kind of processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from export.compilation.module_pass import PassLog
from export.compilation.objects import write_objects
from export.compilation.pipeline import lowered, machine_code, memory_planned


def write_processor_library(module: IRModule, target: Mapping[str, Any], bounds: Mapping[str, int], out: Path) -> None:
    """Compile and link ``out``.

    Args:
        target: of `export.processor.targets.TARGETS`.
        bounds: the largest value of each symbolic size, for which memory is planned.

    Raises:
        MachineError: there is no linker.
    """
    place, log = Target(dict(target)), PassLog()
    pipeline = tvm.transform.Sequential([lowered(dict(bounds)), memory_planned(), machine_code()])
    # TVM's merging of common subexpressions has a regression
    with place, tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}, instruments=[log]), log.explained():
        write_objects(relax.build(module, target=place, relax_pipeline=pipeline), out)
