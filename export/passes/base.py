"""A pass over a traced graph that says what it may change, and is held to it.

The base is onnx_ir's own (onnx/ir-py: src/onnx_ir/passes/_pass_infra.py): ``requires`` and ``ensures`` are checked around
every pass, a pass that works in place must return the model it was given, and `onnx_ir.passes.Sequential` names the passes
that ran before the one that failed. Added here: a pass names the parts of the graph that it changes, every other part must
come out as it went in, and each of its inputs must still be made before it is read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, final

import onnx_ir as ir

NAMED_VALUE = (".output", ".input")
"""Endings of the values that `export.graphs.block_marks` names after the module they leave or enter."""


class Part(StrEnum):
    """What a pass may change."""

    NODES = "nodes"
    """Operators, their attributes, and which value each reads and makes; their names too."""
    NODE_NAMES = "node names"
    BLOCK_NAMES = "names of block outputs"
    INITIALIZERS = "initializers"
    BORDER = "inputs and outputs"
    OPERATOR_SETS = "operator sets"
    NOTES = "metadata and remarks"


class GraphPass(ir.passes.InPlacePass):
    """A pass that works in place.

    A subclass sets ``changes`` and writes `rewrite`; it may add ``requires`` and ``ensures`` (call ``super().ensures``).
    """

    changes: ClassVar[frozenset[Part]]

    @abstractmethod
    def rewrite(self, model: ir.Model) -> int:
        """Change ``model``; return in how many places, 0 when it was left as it was."""

    @final
    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run `rewrite` and compare what changed with what was declared.

        Raises:
            onnx_ir.passes.PassError: a part that the pass does not declare has changed.
        """
        before = _snapshots(model)
        places = self.rewrite(model)
        after = _snapshots(model)
        allowed = self.changes if places else frozenset()
        if Part.NODES in allowed:
            allowed |= {Part.NODE_NAMES}
        undeclared = [part for part in Part if part not in allowed and before[part] != after[part]]
        if undeclared:
            declared = ", ".join(sorted(allowed)) or "nothing"
            raise ir.passes.PassError(f"{self} says that it changed {declared}; it also changed {', '.join(undeclared)}")
        return ir.passes.PassResult(model, modified=bool(places))

    def ensures(self, model: ir.Model) -> None:
        """Raise PostconditionError where a node reads what nothing before it makes, or two values have one name."""
        made = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
        for node in model.graph:
            unmade = [value.name for value in node.inputs if value is not None and value.name not in made]
            if unmade:
                raise ir.passes.PostconditionError(
                    f"{self}: node {node.name} reads {unmade[0]}, which nothing before it makes"
                )
            names = {value.name for value in node.outputs if value.name}
            if names & made:
                raise ir.passes.PostconditionError(f"{self}: two values are called {min(names & made)}")
            made |= names
        absent = [value.name for value in model.graph.outputs if value.name not in made]
        if absent:
            raise ir.passes.PostconditionError(f"{self}: nothing makes the output {absent[0]}")

    def __str__(self) -> str:
        return type(self).__name__


def apply(model: ir.Model, passes: Sequence[ir.passes.PassBase]) -> None:
    """Run in-place ``passes`` over ``model`` in order.

    Raises:
        onnx_ir.passes.PassError: one of them failed; its words name it and those that ran before.
    """
    if passes:
        ir.passes.Sequential(*passes)(model)


def replace_nodes(graph: ir.Graph, old: Sequence[ir.Node], new: ir.Node, values: Mapping[ir.Value, ir.Value]) -> None:
    """Put ``new`` where the first of ``old`` stands; ``values`` says which of its outputs takes the place of which value.

    An output takes over name, type, shape and metadata, and its place among the graph's outputs.
    """
    for before, after in values.items():
        after.metadata_props.update(before.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, old[0], old, [new], list(values), list(values.values()))


def _snapshots(model: ir.Model) -> Mapping[Part, tuple[object, ...]]:
    return {part: tuple(read(model)) for part, read in READERS.items()}


def _nodes(model: ir.Model) -> Iterator[object]:
    for node in model.graph:
        reads = tuple(value and value.name for value in node.inputs)
        makes = tuple(value.name for value in node.outputs)
        attributes = tuple((name, attribute.type, _plain(attribute)) for name, attribute in node.attributes.items())
        yield node.domain, node.op_type, reads, makes, attributes


def _plain(attribute: ir.Attr) -> object:
    """The value of an attribute; of a tensor or a graph, which object it is."""
    plain = (int, float, str, bytes, tuple)
    return attribute.value if isinstance(attribute.value, plain) else id(attribute.value)


def _block_names(model: ir.Model) -> Iterator[object]:
    names = {value.name or "" for node in model.graph for value in node.outputs}
    yield from sorted(name for name in names if name.endswith(NAMED_VALUE))


def _initializers(model: ir.Model) -> Iterator[object]:
    for name, value in model.graph.initializers.items():
        yield name, value.dtype, str(value.shape), id(value.const_value)


def _border(model: ir.Model) -> Iterator[object]:
    for values in (model.graph.inputs, model.graph.outputs):
        yield tuple((value.name, value.dtype, str(value.shape)) for value in values)


def _notes(model: ir.Model) -> Iterator[object]:
    yield tuple(model.metadata_props.items()), tuple(model.graph.metadata_props.items())
    yield model.producer_version, model.doc_string, model.graph.doc_string, len(model.functions)
    yield sum(1 for node in model.graph if node.metadata_props or node.doc_string)


READERS: Mapping[Part, Callable[[ir.Model], Iterator[object]]] = {
    Part.NODES: _nodes,
    Part.NODE_NAMES: lambda model: (node.name for node in model.graph),
    Part.BLOCK_NAMES: _block_names,
    Part.INITIALIZERS: _initializers,
    Part.BORDER: _border,
    Part.OPERATOR_SETS: lambda model: iter(model.graph.opset_imports.items()),
    Part.NOTES: _notes,
}
"""How each part is read for the comparison."""
