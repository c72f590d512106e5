"""Work that PyTorch's exporter repeats although its result is there, left out while graphs are traced.

An export traces a graph a stage and two of a deep one, and each time the exporter (torch/onnx/_internal/exporter) asks
onnxscript for all its functions anew and runs the traced graph once more, node by node, to see which arguments need a cast.
Neither has a switch. `known_results` keeps the functions, and gives that run what the trace says of a node in place of
computing it; graphs are equal byte for byte. Where a release of PyTorch has no such place, nothing is changed there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import fx


@contextmanager
def known_results() -> Iterator[None]:
    """Export inside without the repeated work. The functions are shared: no translations of one's own may be given."""
    changed: list[tuple[type, str, Any]] = []
    try:
        with suppress(ImportError, AttributeError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            functions = functools.partial(_functions, ONNXRegistry.from_torchlib)
            changed.append(_replaced(ONNXRegistry, "from_torchlib", staticmethod(functions)))
        with suppress(ImportError, AttributeError):
            from torch.onnx._internal.fx.passes import type_promotion

            interpreter, rule_of = type_promotion._TypePromotionInterpreter, type_promotion.get_type_promotion_rule
            changed.append(_replaced(interpreter, "run_node", _promoted(interpreter, rule_of)))
        yield
    finally:
        for owner, name, before in changed:
            setattr(owner, name, before)


def _replaced(owner: type, name: str, value: Any) -> tuple[type, str, Any]:
    before = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    setattr(owner, name, value)
    return owner, name, before


@functools.cache
def _functions(ask: Callable[..., Any], opset_version: int) -> Any:
    """The registry of every function of onnxscript for PyTorch's operators, for an operator set."""
    return ask(opset_version=opset_version)


def _promoted(interpreter: Any, rule_of: Callable[..., Any]) -> Callable[[Any, fx.Node], Any]:
    """The interpreter's method for one node, which computes what has no known value or got other arguments alone."""
    computed: Callable[[Any, fx.Node], Any] = interpreter.run_node

    def run_node(self: Any, node: fx.Node) -> Any:
        if node.op != "call_function" or node.meta.get("val") is None:
            return computed(self, node)
        with self._set_current_node(node):
            rule = rule_of(node, self.type_promotion_table)
            if rule:
                # a node whose arguments are cast is run there, and its value entered
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    return run_node
