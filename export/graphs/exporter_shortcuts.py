"""Work that PyTorch's exporter repeats or does for nothing, left out while graphs are traced.

An export traces a graph a stage and two of a deep one. Each time the exporter (torch/onnx/_internal/exporter, torch/export)

- asks onnxscript for all its functions anew, each with its source parsed, of which the name of a domain is read,
- puts the table of decompositions together, and looks for operators that C++ registered once a namespace,
- writes every graph between two steps as Python source and compiles it, which is hardly ever run,
- notes of every node the strides of its value beside that value, which nothing reads here,
- runs the finished graph once more, node by node, to see which arguments need a cast.

None has a switch. `known_results` keeps what is the same, compiles a graph when it is called, and gives the last run what
the trace says of a node in place of computing it; graphs are equal byte for byte. Where a release of PyTorch has no such
place, nothing is changed there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from torch import fx


@contextmanager
def known_results() -> Iterator[None]:
    """Export inside without that work. The functions are shared: no translations of one's own may be given."""
    with ExitStack() as ended:
        for shortcut in (_functions_once, _table_once, _operators_once, _compiled_when_called, _no_strides, _casts_by_value):
            with suppress(ImportError, AttributeError):
                shortcut(ended)
        yield


def _replace(ended: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until ``ended``."""
    before = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    ended.callback(setattr, owner, name, before)
    setattr(owner, name, value)


def _functions_once(ended: ExitStack) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    _replace(ended, ONNXRegistry, "from_torchlib", staticmethod(functools.partial(_functions, ONNXRegistry.from_torchlib)))


@functools.cache
def _functions(ask: Callable[..., Any], opset_version: int) -> Any:
    """The registry of every function of onnxscript for PyTorch's operators, for an operator set."""
    with ExitStack() as ended:
        with suppress(ImportError, AttributeError):
            from onnxscript._internal.values import TracedOnnxFunction

            domain_alone = property(lambda function: SimpleNamespace(domain=function.opset.domain))
            _replace(ended, TracedOnnxFunction, "function_ir", domain_alone)
        return ask(opset_version=opset_version)


def _table_once(ended: ExitStack) -> None:
    from torch.onnx._internal.exporter import _decomp

    table = functools.partial(_table, _decomp.create_onnx_friendly_decomposition_table)
    # the exporter takes operators out of what it is given
    _replace(ended, _decomp, "create_onnx_friendly_decomposition_table", lambda operators: dict(table(frozenset(operators))))


@functools.cache
def _table(make: Callable[..., Any], operators: frozenset[Any]) -> Any:
    """How operators that have no function are decomposed."""
    return make(operators)


def _operators_once(ended: ExitStack) -> None:
    from torch._export import utils

    # a trace registers none
    _replace(ended, utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))


def _compiled_when_called(ended: ExitStack) -> None:
    compile_now = fx.GraphModule.recompile
    _replace(ended, fx.GraphModule, "recompile", functools.partialmethod(_compile_when_called, compile_now))


def _compile_when_called(module: fx.GraphModule, compile_now: Callable[[fx.GraphModule], Any]) -> None:
    if isinstance(module.graph._codegen, fx.graph._PyTreeCodeGen):
        module._in_spec, module._out_spec = module.graph._codegen.pytree_info[1:]
    # every graph has a class of its own
    type(module).forward = _Forward(compile_now)  # type: ignore[assignment]


class _Forward:
    """A graph's method that is compiled when it is asked for."""

    def __init__(self, compile_now: Callable[[fx.GraphModule], Any]) -> None:
        self._compile_now = compile_now

    def __get__(self, module: fx.GraphModule | None, _: type) -> Any:
        if module is None:
            return self
        self._compile_now(module)
        return module.forward


def _no_strides(ended: ExitStack) -> None:
    from torch.fx.experimental import proxy_tensor

    _replace(ended, proxy_tensor, "_extract_tensor_metadata", lambda _: None)


def _casts_by_value(ended: ExitStack) -> None:
    from torch.onnx._internal.fx.passes import type_promotion

    interpreter, rule_of = type_promotion._TypePromotionInterpreter, type_promotion.get_type_promotion_rule
    _replace(ended, interpreter, "run_node", _promoted(interpreter, rule_of))


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
