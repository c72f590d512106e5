"""What can be computed from the graph alone is computed now."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from export.passes.base import GraphPass, Part


class FoldConstants(GraphPass):
    """onnxscript's folder and the clean-up that comes with it."""

    changes = frozenset({Part.NODES, Part.INITIALIZERS, Part.OPERATOR_SETS, Part.NOTES})

    def rewrite(self, model: ir.Model) -> int:
        optimizer.optimize_ir(model)
        return 1
