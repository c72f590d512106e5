"""The compilation pipeline from a Relax module to virtual machine code.

The order is that of mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/pipeline.py, without the passes for CUDA, tensor
parallelism and speculative decoding.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, tirx
from tvm.target import Target

from export.backends.mlc.passes.annotate_bounds import AnnotateBounds
from export.backends.mlc.passes.attach_metadata import AttachMetadata
from export.backends.mlc.passes.cpu_schedule import ScheduleForCpu
from export.backends.mlc.passes.device_schedules import ScheduleBatched, ScheduleForDevice
from export.backends.mlc.passes.function_order import SortFunctions
from export.backends.mlc.passes.shape_order import SortShapeFunctions


def pipeline(target: Target, schedule: Target, bounds: dict[str, int], metadata: dict[str, Any]) -> tvm.transform.Pass:
    """All passes.

    Args:
        target: what is built for.
        schedule: target whose kernel schedules are used; differs where TVM's scheduler fails for ``target``.
        bounds: largest value of each symbolic size that has one (``seq_len``, ``batch_size``, ``total_seq_len``).
        metadata: becomes ``_metadata``, with ``memory_usage`` added.
    """
    return tvm.transform.Sequential(
        [
            lowered(bounds),
            *scheduled(target, schedule),
            tirx.transform.ForceNarrowIndexToInt32(),
            memory_planned(),
            AttachMetadata(metadata).as_tvm(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.VMShapeLower(),
            # the functions that VMShapeLower has just made
            SortShapeFunctions().as_tvm(),
            SortFunctions().as_tvm(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def lowered(bounds: dict[str, int]) -> tvm.transform.Pass:
    """Operators become fused kernels, not yet scheduled."""
    return tvm.transform.Sequential(
        [
            AnnotateBounds(bounds).as_tvm(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            # before FuseOps: two reshapes in a row, fused, are a kernel that copies
            relax.transform.RewriteDataflowReshape(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )


def scheduled(target: Target, schedule: Target) -> list[tvm.transform.Pass]:
    """Kernels get their loops: strips of a product on a processor, threads and blocks on a device."""
    if target.kind.name == "llvm":
        return [ScheduleForCpu(target).as_tvm()]
    return [ScheduleBatched(schedule).as_tvm(), ScheduleForDevice(schedule).as_tvm()]


def memory_planned() -> tvm.transform.Pass:
    """Every buffer gets its place in a storage that others share."""
    return tvm.transform.Sequential(
        [
            # looks into dataflow blocks, so it comes before they are dissolved
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            # shares out the allocations that CallTIRRewrite has made explicit
            relax.transform.StaticPlanBlockMemory(),
        ]
    )
