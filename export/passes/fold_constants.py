"""What can be computed from the graph alone is computed now.

The passes are those of onnxscript's `optimizer.optimize_ir`, in its order, and so are the rules. Its rule set tries every
rule on every node, four fifths of the time that the passes took: here a rule sees only nodes of the operator that its
pattern ends in, the first thing that its matcher would compare (onnxscript/rewriter/_matcher.py, `_match_node`;
_pattern_ir.py, `NodePattern.matches`).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern

from export.passes.base import GraphPass, Part

ROUNDS = 2
"""Times that folding and rewriting are repeated while either finds something."""


class FoldConstants(GraphPass):
    """onnxscript's folder and the clean-up that comes with it."""

    changes = frozenset({Part.NODES, Part.INITIALIZERS, Part.OPERATOR_SETS, Part.NOTES})

    def rewrite(self, model: ir.Model) -> int:
        looking: list[Any] = [_RuleOfOperator(rule) for rule in rewriter._DEFAULT_REWRITE_RULES]
        rules = pattern.RewriteRuleSet(looking)
        unused = (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass())
        ir.passes.Sequential(
            common.InlinePass(),
            ir.passes.PassManager([_Fold(), rewriter.RewritePass(rules), *unused], steps=ROUNDS, early_stop=True),
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        )(model)
        return 1


class _Fold(ir.passes.InPlacePass):
    """Folding alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified)


class _RuleOfOperator:
    """A rule that looks at nodes of its own operator only; at all where its pattern names none."""

    def __init__(self, rule: pattern.RewriteRule) -> None:
        self.rule = rule
        last = rule._target_pattern.output_nodes[0].op_identifier()
        self.operator = None if last is None else last[:2]

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **how: Any) -> Any:
        if self.operator is not None and (node.domain, node.op_type) != self.operator:
            return None
        return self.rule.try_rewrite(model, graph, node, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)
