"""What can be computed from the graph alone is computed now.

The passes are those of onnxscript's `optimizer.optimize_ir`, in its order, and so are the rules. Its rule set tries every
rule on every node, four fifths of the time that the passes took: here a rule sees only nodes of the operator that its
pattern ends in, the first thing that its matcher would compare.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common as rules

from export.passes.base import GraphPass, Part

ROUNDS = 2
"""Times that folding and rewriting are repeated while either finds something."""

LARGEST_SHARED = 4096
"""Numbers of the largest constant that is looked at for another that is equal: a matrix that turns 64 values."""

COMMUTED = ("mul_by_1_rule", "add_0_rule")
"""Rules that look at their operands in both orders."""

RULES = (
    ("Mul", "mul_by_1_rule"),
    ("Add", "add_0_rule"),
    ("Sub", "sub_0_rule"),
    ("Div", "div_by_1_rule"),
    ("Dropout", "dropout_zero_rule"),
    ("Dropout", "dropout_inference_rule"),
    ("Reshape", "two_reshapes_matmul_reshape_rule"),
    ("Reshape", "one_reshape_matmul_reshape_rule"),
    ("Cast", "cast_constant_of_shape_rule"),
    ("Cast", "cast_constant_of_shape_without_value_rule"),
    ("Slice", "collapse_slice_rule"),
    ("Slice", "collapse_slice2_rule"),
    ("Reshape", "materialize_reshape_shape_rule"),
    ("Min", "min_min_rule"),
    ("Max", "max_max_rule"),
    ("Max", "min_max_rule"),
    ("Min", "max_min_rule"),
    ("Clip", "successive_clip_relu_rule"),
    ("Relu", "successive_relu_clip_rule"),
    ("Relu", "successive_relu_rule"),
    ("Clip", "successive_clip_rule"),
    ("Cast", "cast_cast_rule"),
    ("Cast", "no_op_cast_rule"),
    ("Expand", "no_op_expand_rule"),
    ("Flatten", "flatten_to_reshape_rule"),
    ("Reshape", "reshape_reshape_rule"),
    ("Slice", "slice_split_rule"),
    ("Transpose", "no_op_transpose_rule"),
    ("Transpose", "transpose_transpose_rule"),
    ("Unsqueeze", "unsqueeze_unsqueeze_rule"),
    ("Reshape", "squeeze_reshape_1d_rule"),
    ("ScatterND", "no_op_dynamic_scatter_nd_rule"),
    ("ScatterND", "no_op_static_scatter_nd_rule"),
    ("Conv", "normalize_pad_format_conv_rule"),
    ("ConvInteger", "normalize_pad_format_conv_integer_rule"),
    ("Conv", "fuse_pad_into_conv_rule"),
    ("ConvInteger", "fuse_pad_into_conv_integer_rule"),
    ("BatchNormalization", "fuse_batchnorm_into_conv_rule"),
    ("BatchNormalization", "fuse_batchnorm_into_conv_transpose_rule"),
    ("BatchNormalization", "fuse_batchnorm_into_gemm_rule"),
    ("Conv", "remove_optional_bias_from_conv_rule"),
    ("ConvTranspose", "remove_optional_bias_from_conv_transpose_rule"),
    ("QLinearConv", "remove_optional_bias_from_qlinear_conv_rule"),
    ("Gemm", "remove_optional_bias_from_gemm_rule"),
)
"""The operator that each rule's pattern ends in, and its name in `onnxscript.rewriter.rules.common`. A version that does not
have a rule yet (``materialize_reshape_shape_rule`` in 0.6) does without."""


class FoldConstants(GraphPass):
    """onnxscript's folder and the clean-up that comes with it."""

    changes = frozenset({Part.NODES, Part.INITIALIZERS, Part.OPERATOR_SETS, Part.NOTES})

    def rewrite(self, model: ir.Model) -> int:
        looking: list[Any] = [RuleOfOperator(operator, rule) for operator, rule in rules_by_operator()]
        unused = (common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass())
        rewriting = rewriter.RewritePass(pattern.RewriteRuleSet(looking))
        ir.passes.Sequential(
            common.InlinePass(),
            ir.passes.PassManager([_Fold(), rewriting, *unused], steps=ROUNDS, early_stop=True),
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.LiftSubgraphInitializersToMainGraphPass(),
            common.DeduplicateInitializersPass(size_limit=LARGEST_SHARED),
            common.CommonSubexpressionEliminationPass(),
            common.OutputFixPass(),
            common.NameFixPass(),
        )(model)
        return 1


class _Fold(ir.passes.InPlacePass):
    """Folding alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified)


def rules_by_operator() -> list[tuple[str, pattern.RewriteRule]]:
    """Operator and rule, in the order in which rules are tried."""
    known = [(operator, name, getattr(rules, name)) for operator, name in RULES if hasattr(rules, name)]
    return [(operator, one) for operator, name, rule in known for one in (rule.commute() if name in COMMUTED else [rule])]


class RuleOfOperator:
    """A rule that looks at nodes of one operator of ONNX's own domain only."""

    def __init__(self, operator: str, rule: pattern.RewriteRule) -> None:
        self.operator, self.rule = operator, rule

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **how: Any) -> Any:
        if (node.domain, node.op_type) != ("", self.operator):
            return None
        return self.rule.try_rewrite(model, graph, node, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)
