"""The stages' graphs of an ONNX package held against graphs that are traced anew from its record.

Questions of a check are short: an attribute that acts behind a thousand positions, or a constant that only then is read,
shows in none of them. Weights lie outside the graphs and are compared by `onnx_files`; here only their names, dtypes and
shapes are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

import onnx

from export.backends.onnx.record import BACKEND
from export.backends.onnx.stage_graphs import stage_model_again
from export.package.manifest import assignments_of
from export.plan.machine import tool_versions
from export.specs import ModelSpec
from parity_tests.check.candidate import Candidate
from runtime_py.backends.records import MANY_ROWS
from runtime_py.contracts import DECODER
from runtime_py.errors import MachineError
from runtime_py.files.json_file import shortened

TRACERS = ("torch", onnx.__name__, "onnxscript")


def other_graph(side: Candidate, spec: ModelSpec) -> tuple[str, str] | None:
    """The first stage with another graph, and what is other in it; None where all are as they are traced.

    Raises:
        MachineError: they were traced by other versions, whose graphs may have other nodes.
    """
    _require_tools(side.manifest["tools"])
    block, rows = side.block, side.assignments()
    graphs = {row["file"]: (stage, rows) for stage, row in block["stages"].items()}
    if MANY_ROWS in block:
        graphs[block[MANY_ROWS]["file"]] = (DECODER, {**rows, **block[MANY_ROWS]["assignments"]})
    for file, (stage, held) in graphs.items():
        found = onnx.load(str(side.folder / file), load_external_data=False)
        expected = stage_model_again(spec, stage, side.manifest["precision"], block, assignments_of(spec, held))
        other = next(_differences(_without_places(found), _without_places(expected)), "")
        if other:
            return stage, f"{file} is another graph than one that is traced anew from the package's record: {other}"
    return None


def _require_tools(made_with: Mapping[str, str]) -> None:
    here = tool_versions([BACKEND.name])
    other = [name for name in TRACERS if made_with.get(name) != here.get(name)]
    if other:
        wanted = ", ".join(f"{name} {made_with.get(name, 'of an unknown version')}" for name in other)
        raise MachineError(
            f"graphs cannot be traced anew: here is {', '.join(f'{name} {here.get(name)}' for name in other)}",
            f"what the package was made with: {wanted}",
            "install these versions, or leave --rebuild out",
        )


def _without_places(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights without where they lie, which a traced graph does not know."""
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or not tensor.raw_data:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.ClearField("raw_data")
    return model


def _differences(found: onnx.ModelProto, expected: onnx.ModelProto) -> Iterator[str]:
    if found == expected:
        return
    for own, right in zip_longest(found.graph.node, expected.graph.node):
        if own != right:
            yield _node(own, right)
    for own, right in zip_longest(found.graph.initializer, expected.graph.initializer):
        if own != right:
            yield f"constant or weight {(own or right).name}"
    for name in ("input", "output", "value_info"):
        if getattr(found.graph, name) != getattr(expected.graph, name):
            yield f"its {name}s"
    yield "its description"


def _node(own: onnx.NodeProto | None, right: onnx.NodeProto | None) -> str:
    if own is None or right is None:
        return f"node {(own or right).name} is {'missing' if own is None else 'one more'}"  # type: ignore[union-attr]
    named = f"node {right.name} ({right.op_type})"
    if (own.op_type, own.domain) != (right.op_type, right.domain):
        return f"{named} is {own.op_type}"
    if own.input != right.input or own.output != right.output:
        return f"{named} reads {list(own.input)} to {list(own.output)}, not {list(right.input)} to {list(right.output)}"
    values, meant = _attributes(own), _attributes(right)
    for name in sorted({*values, *meant}):
        if values.get(name) != meant.get(name):
            return f"{named} has {name} {shortened(values.get(name))}, not {shortened(meant.get(name))}"
    return f"{named} is written otherwise"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
