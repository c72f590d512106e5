"""Whether a graph that was written layer by layer is the circuit of the traced one, with one layer repeated.

The names of its values were worked out from numbers (`export.graphs.repeated_layers`); here only what reads what counts. A
node of a repeated layer must read what its like in the layer before reads: the same value that stands before all of them,
what its like's source has in its own place one layer on, or an input or initializer that there is. Nodes before and behind
the layers must read what they read in the traces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Layers:
    """Where the repeated layer stands among the nodes of a graph.

    Attributes:
        start: of the first layer that the others are like, one that was traced.
        length: nodes of a layer.
        further: layers behind the first; in the deeper of the two traces it is 1.
    """

    start: int
    length: int
    further: int

    @property
    def stop(self) -> int:
        """The first node behind the layers."""
        return self.start + (1 + self.further) * self.length


Source = int | None
"""The place of the node that makes a value; None for inputs and initializers of the graph."""


def is_unrolled(deeper: onnx.GraphProto, made: onnx.GraphProto, layers: Layers) -> bool:
    """Whether ``made`` computes what ``deeper`` does with ``layers.further`` layers where ``deeper`` has one.

    Args:
        deeper: the trace, whose nodes behind the layers stand ``further - 1`` layers earlier.
    """
    traced, written = _sources(deeper), _sources(made)
    if traced is None or written is None or len(made.node) != len(deeper.node) + (layers.further - 1) * layers.length:
        return False
    moved, last = (layers.further - 1) * layers.length, layers.start + layers.length
    for place, sources in enumerate(written):
        if place < last:
            expected = traced[place]
        elif place < layers.stop:
            like = written[place - layers.length]
            names = zip(made.node[place - layers.length].input, made.node[place].input, strict=True)
            expected = [_onward(source, name == before, layers) for source, (before, name) in zip(like, names, strict=True)]
        else:
            expected = [source if source is None or source < last else source + moved for source in traced[place - moved]]
        if list(sources) != list(expected):
            return False
    ends = {name for node in made.node for name in node.output}
    return all(value.name in ends for value in made.output)


def _onward(source: Source, same: bool, layers: Layers) -> Source:
    """The source of an input one layer on; -1, which is none, where the same value would be another layer's."""
    if source is None:
        return None
    if same:
        return source if source < layers.start else -1
    return source + layers.length


def _sources(graph: onnx.GraphProto) -> Sequence[Sequence[Source]] | None:
    """For every node, where its inputs come from; None where one is read that nothing before it makes."""
    given = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    made: dict[str, int] = {}
    every = []
    for place, node in enumerate(graph.node):
        sources = list(_sources_of(node, given, made))
        if len(sources) != len(node.input):
            return None
        every.append(sources)
        made |= dict.fromkeys(node.output, place)
    return every


def _sources_of(node: onnx.NodeProto, given: set[str], made: dict[str, int]) -> Iterator[Source]:
    for name in node.input:
        if name in given:
            yield None
        elif name in made:
            yield made[name]
