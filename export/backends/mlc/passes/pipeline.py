"""The compilation pipeline from a Relax module to virtual machine code.

The order is that of mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/pipeline.py, without the passes for CUDA, tensor
parallelism and speculative decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target

from export.backends.mlc.passes.attach_metadata import AttachMetadata
from export.backends.mlc.passes.cpu_schedule import OPERATORS, ScheduleForCpu
from export.backends.mlc.passes.device_schedules import ScheduleBatched, ScheduleForDevice
from export.compilation.pipeline import lowered, machine_code, memory_planned


def pipeline(
    target: Target,
    schedule: Target,
    bounds: dict[str, int],
    metadata: dict[str, Any],
    before_scheduling: Sequence[tvm.transform.Pass] = (),
) -> tvm.transform.Pass:
    """All passes.

    Args:
        target: what is built for.
        schedule: target whose kernel schedules are used; differs where TVM's scheduler fails for ``target``.
        bounds: largest value of each symbolic size that has one (``seq_len``, ``batch_size``, ``total_seq_len``).
        before_scheduling: passes over the fused kernels.
        metadata: becomes ``_metadata``, with ``memory_usage`` added.
    """
    return tvm.transform.Sequential(
        [
            lowered(bounds, OPERATORS if target.kind.name == "llvm" else None),
            *before_scheduling,
            *scheduled(target, schedule),
            tirx.transform.ForceNarrowIndexToInt32(),
            memory_planned(),
            AttachMetadata(metadata).as_tvm(),
            machine_code(),
        ]
    )


def scheduled(target: Target, schedule: Target) -> list[tvm.transform.Pass]:
    """Kernels get their loops: strips of a product on a processor, threads and blocks on a device."""
    if target.kind.name == "llvm":
        return [ScheduleForCpu(target).as_tvm()]
    return [ScheduleBatched(schedule).as_tvm(), ScheduleForDevice(schedule).as_tvm()]
