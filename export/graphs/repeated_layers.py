"""The graph of a deep stage from the graphs of two shallow ones: every further layer of the same kind adds the same nodes.

Tracing costs about a second of processor time a layer. So a stage whose layers are alike is traced with a few layers and
with one more. What the one has more than the other is a layer; the numbers in its names go on from layer to layer by
constant steps, and so do those of everything behind it. `deepened` works these steps out, checks that they are constant
wherever they can be seen, writes the layers that were not traced, and checks what reads what. Where anything is not as
regular it gives nothing, and the stage is traced whole (`export.graphs.trace`); the result is the same bytes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from torch import nn

from export.graphs.unrolled import Layers, is_unrolled

SHALLOWS = (2, 3, 4)
"""Layers of the first trace, and one more in the second; a later number where the ones before show nothing. The first layer
may be of another kind; where it is not, the steps from it must be those from the second to the third. What is written must
be the traced circuit with that layer repeated (`export.graphs.unrolled`)."""

DEEP = 10
"""Least layers of a stage that is traced so: of three short traces two cost as much as one of about nine layers."""

NUMBER = re.compile(r"(\d+)")
FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
"""Key of a remark whose text is the `repr` of a sorted list of values."""

LAYER_NAME = re.compile(r"\b(layers|blocks)\.\d+")


def layers_are_alike(stage: nn.Module, layers: int) -> bool:
    """Whether a stage has one list of ``layers`` modules that differ in nothing but their number, the first apart."""
    lists = [module for module in stage.children() if isinstance(module, nn.ModuleList) and len(module) == layers]
    return len(lists) == 1 and len({_described(layer) for layer in lists[0][1:]}) == 1


def _described(layer: nn.Module) -> tuple[object, ...]:
    """Everything that a layer's graph can depend on: kinds, settings and parameters of its modules."""
    described: list[object] = []
    for path, module in layer.named_modules():
        settings = sorted((key, repr(value)) for key, value in vars(module).items() if not key.startswith("_"))
        named = tuple((key, LAYER_NAME.sub(r"\1.*", text)) for key, text in settings)
        parameters = tuple((key, tuple(p.shape), p.dtype) for key, p in module.named_parameters(recurse=False))
        buffers = tuple(key for key, _ in module.named_buffers(recurse=False))
        described.append((path, type(module), named, parameters, buffers))
    return tuple(described)


@dataclass(frozen=True)
class _Entry:
    """One node, tensor or value: what it is without the numbers in its names, and those numbers."""

    pattern: tuple[object, ...]
    numbers: tuple[int, ...]
    make: Callable[[Sequence[int]], Any]

    def steps(self, later: _Entry) -> tuple[int, ...] | None:
        """What ``later``'s numbers have more, or None where it is another kind of entry."""
        if self.pattern != later.pattern:
            return None
        return tuple(b - a for a, b in zip(self.numbers, later.numbers, strict=True))


def _split(names: Iterable[str]) -> tuple[tuple[object, ...], tuple[int, ...]]:
    parts = [NUMBER.split(name) for name in names]
    return tuple(tuple(part[::2]) for part in parts), tuple(int(number) for part in parts for number in part[1::2])


def _in_order_of_numbers(remark: onnx.StringStringEntryProto) -> str:
    """A remark's text; a list of names so that val_9 stands before val_10 (the exporter sorts them as texts)."""
    if remark.key != FOLDED_FROM:
        return remark.value
    names = ast.literal_eval(remark.value)
    return " ".join(sorted(names, key=lambda name: [(part.zfill(9), part) for part in NUMBER.split(name)]))


def _entry(proto: Any, fields: Sequence[str]) -> _Entry:
    """An entry of a graph whose names stand in ``fields``, each a text or a list of texts, and in its remarks."""
    values = [getattr(proto, field) for field in fields]
    texts = [[value] if isinstance(value, str) else list(value) for value in values]
    texts.append([_in_order_of_numbers(remark) for remark in proto.metadata_props])
    words, numbers = _split(name for names in texts for name in names)
    bare = type(proto)()
    bare.CopyFrom(proto)
    for field in fields:
        bare.ClearField(field)
    for remark in bare.metadata_props:
        remark.value = ""

    def make(numbered: Sequence[int]) -> Any:
        rest, made = iter(numbered), type(proto)()
        made.CopyFrom(proto)
        renamed = [[NUMBER.sub(lambda _: str(next(rest)), name) for name in names] for names in texts]
        for field, value, names in zip(fields, values, renamed, strict=False):
            if isinstance(value, str):
                if proto.HasField(field):
                    setattr(made, field, names[0])
            else:
                made.ClearField(field)
                getattr(made, field).extend(names)
        for remark, text in zip(made.metadata_props, renamed[-1], strict=True):
            remark.value = repr(sorted(text.split())) if remark.key == FOLDED_FROM else text
        return made

    lengths = tuple(len(names) for names in texts)
    return _Entry((words, lengths, bare.SerializeToString(deterministic=True)), numbers, make)


LISTS = {
    "node": ("name", "input", "output"),
    "initializer": ("name",),
    "value_info": ("name",),
    "input": ("name",),
    "output": ("name",),
}
"""The lists of a graph, with the fields that hold names."""


def deepened(shallow: onnx.ModelProto, deeper: onnx.ModelProto, further: int) -> onnx.ModelProto | None:
    """The graph of a stage with ``further`` more layers than ``shallow``, or None where the two do not show what it is.

    Args:
        deeper: the same stage with one layer more than ``shallow``.
    """
    if len(deeper.graph.node) <= len(shallow.graph.node):
        return None
    made = onnx.ModelProto()
    made.CopyFrom(shallow)
    other = onnx.ModelProto()
    other.CopyFrom(deeper)
    start = 0
    for field, names in LISTS.items():
        parts = [[[_entry(proto, names) for proto in part] for part in _parts(m.graph, field)] for m in (shallow, deeper)]
        entries = []
        for one, more in zip(*parts, strict=True):
            cut = _cut(one, more)
            if cut is None:
                return None
            entries += _deepened(one, more, cut, further)
            start = cut.place - (len(more) - len(one)) if field == "node" else start
        for model in (made, other):
            model.graph.ClearField(field)  # type: ignore[arg-type]
        getattr(made.graph, field).extend(entries)
    names_of_values = [name for node in made.graph.node for name in node.output if name]
    alike = _bare(made).SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    if not alike or len(names_of_values) != len(set(names_of_values)):
        return None
    layers = Layers(start, len(deeper.graph.node) - len(shallow.graph.node), further)
    return made if is_unrolled(deeper.graph, made.graph, layers) else None


def _parts(graph: onnx.GraphProto, field: str) -> list[list[Any]]:
    """A list of a graph, cut where its layers begin anew: the shapes of initializers stand before those of other values."""
    entries = list(getattr(graph, field))
    if field != "value_info":
        return [entries]
    names = {tensor.name for tensor in graph.initializer}
    count = next((place for place, value in enumerate(entries) if value.name not in names), len(entries))
    return [entries[:count], entries[count:]]


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without what `LISTS` names."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for field in LISTS:
        bare.graph.ClearField(field)  # type: ignore[arg-type]
    return bare


Steps = list[tuple[int, ...]]
"""How much further the numbers of each entry are."""


@dataclass(frozen=True)
class _Cut:
    """Where a layer is added to a list.

    Attributes:
        place: the first entry behind the layers of the shallower graph.
        before, behind: steps of the entries before and behind it when there is a layer more.
        onward: steps from the last layer to the one added.
    """

    place: int
    before: Steps
    behind: Steps
    onward: Steps


def _cut(shallow: list[_Entry], deeper: list[_Entry]) -> _Cut | None:
    """Where the layer that ``deeper`` has more is added; None where no place shows itself."""
    layer = len(deeper) - len(shallow)
    if layer < 0:
        return None
    for cut in range(len(shallow), layer - 1, -1):
        before = _all_steps(shallow[:cut], deeper[:cut])
        behind = None if before is None else _all_steps(shallow[cut:], deeper[cut + layer :])
        if before is None or behind is None:
            continue
        last = deeper[cut - layer : cut]
        onward = _all_steps(last, deeper[cut : cut + layer])
        if onward is None:
            continue
        # where the layer before the last is of the same kind, it shows whether the steps are constant
        towards = _all_steps(deeper[max(0, cut - 2 * layer) : cut - layer], last)
        return _Cut(cut, before, behind, onward) if towards in (None, onward) else None
    return None


def _deepened(shallow: list[_Entry], deeper: list[_Entry], cut: _Cut, further: int) -> list[Any]:
    layer, place = len(deeper) - len(shallow), cut.place
    made = [_moved(entry, steps, further) for entry, steps in zip(shallow[:place], cut.before, strict=True)]
    added = deeper[place : place + layer]
    # what the numbers of a layer depend on beside its place: how many layers there are in all
    whole = cut.before[place - layer : place] if layer else []
    for number in range(further):
        for entry, steps, all_layers in zip(added, cut.onward, whole, strict=True):
            numbers = zip(entry.numbers, steps, all_layers, strict=True)
            made.append(entry.make([n + number * step + (further - 1) * every for n, step, every in numbers]))
    return made + [_moved(entry, steps, further) for entry, steps in zip(shallow[place:], cut.behind, strict=True)]


def _all_steps(entries: Sequence[_Entry], later: Sequence[_Entry]) -> Steps | None:
    if len(entries) != len(later):
        return None
    steps = []
    for one, other in zip(entries, later, strict=True):
        step = one.steps(other)
        if step is None:
            return None
        steps.append(step)
    return steps


def _moved(entry: _Entry, steps: Sequence[int], times: int) -> Any:
    return entry.make([number + times * step for number, step in zip(entry.numbers, steps, strict=True)])
