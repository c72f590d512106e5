"""The passes that every library goes through, before and behind the scheduling of its kernels.

The order is that of mlc-ai/mlc-llm, python/mlc_llm/compiler_pass/pipeline.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tvm
from tvm import relax

from export.compilation.annotate_bounds import AnnotateBounds
from export.compilation.function_order import SortFunctions
from export.compilation.shape_order import SortShapeFunctions

Legalise = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]
"""Writes an operator's call as one of a kernel."""


def lowered(bounds: dict[str, int], own: Mapping[str, Legalise] | None = None) -> tvm.transform.Pass:
    """Operators become fused kernels, not yet scheduled; ``own`` writes those of these names in place of TVM."""
    return tvm.transform.Sequential(
        [
            AnnotateBounds(bounds).as_tvm(),
            relax.transform.LegalizeOps(None if own is None else dict(own)),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            # before FuseOps: two reshapes in a row, fused, are a kernel that copies
            relax.transform.RewriteDataflowReshape(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )


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


def machine_code() -> tvm.transform.Pass:
    """From planned memory to functions of the virtual machine, in one order."""
    return tvm.transform.Sequential(
        [
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
