"""Every place of a graph where a path can hide, written by the onnx library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime_py.backends.onnx_files import external_files, unlisted
from runtime_py.errors import PackageError

onnx = pytest.importorskip("onnx")


def tensor(location: str, name: str = "w") -> Any:
    made = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        made.external_data.add(key=key, value=value)
    return made


def as_initializer(model: Any) -> None:
    model.graph.initializer.append(tensor("hidden.bin"))


def as_sparse_initializer(model: Any) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor("hidden.bin"), indices=tensor("hidden.bin")))


def as_attribute(model: Any) -> None:
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor("hidden.bin")))


def as_list_of_attributes(model: Any) -> None:
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="v", type=9, tensors=[tensor("hidden.bin")]))


def in_a_subgraph(model: Any) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[tensor("hidden.bin")])
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="then_branch", type=5, g=inner))


def in_a_list_of_subgraphs(model: Any) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[tensor("hidden.bin")])
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="branches", type=10, graphs=[inner]))


def in_a_function(model: Any) -> None:
    node = onnx.helper.make_node("Constant", [], ["x"], value=tensor("hidden.bin"))
    model.functions.append(onnx.FunctionProto(name="f", domain="d", node=[node]))


def in_training(model: Any) -> None:
    inner = onnx.GraphProto(name="t", initializer=[tensor("hidden.bin")])
    model.training_info.append(onnx.TrainingInfoProto(initialization=inner))


HIDDEN: list[Callable[[Any], None]] = [
    as_initializer,
    as_sparse_initializer,
    as_attribute,
    as_list_of_attributes,
    in_a_subgraph,
    in_a_list_of_subgraphs,
    in_a_function,
    in_training,
]


def graph(folder: Path, hide: Callable[[Any], None]) -> Path:
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [], [], [tensor("weights.bin")])
    )
    hide(model)
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)
def test_paths_are_found_wherever_they_are(tmp_path: Path, hide: Callable[[Any], None]) -> None:
    path = graph(tmp_path, hide)
    assert external_files(path) == ["hidden.bin", "weights.bin"]
    assert unlisted(path, "onnx/graph.onnx", {"onnx/weights.bin"}) == ["hidden.bin"]
    assert unlisted(path, "onnx/graph.onnx", {"onnx/weights.bin", "onnx/hidden.bin"}) == []


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/onnx/weights.bin", "x/../weights.bin", "weights.bin/", "./weights.bin"]
)
def test_paths_in_other_words_are_strange(tmp_path: Path, location: str) -> None:
    path = graph(tmp_path, lambda model: model.graph.initializer.append(tensor(location)))
    assert unlisted(path, "onnx/graph.onnx", {"onnx/weights.bin", "weights.bin"}) == [location]


def test_compiled_contexts_are_code(tmp_path: Path) -> None:
    def compiled(model: Any) -> None:
        node = onnx.helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft", ep_cache_context="engine.bin")
        model.graph.node.append(node)

    with pytest.raises(PackageError, match="EPContext"):
        external_files(graph(tmp_path, compiled))


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_an_operator_that_may_not_end_is_refused_at_any_depth(tmp_path: Path, operator: str) -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node(operator, ["x"], ["z"])], "inner", [], [])
    for node in (inner.node[0], onnx.helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)):
        with pytest.raises(PackageError, match=f"a {operator}, which may not end"):
            external_files(graph(tmp_path, partial(_with_node, node)))


def _with_node(node: Any, model: Any) -> None:
    model.graph.node.append(node)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02\x0a\x08", b"\x38\x01"])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(PackageError, match="is no ONNX graph"):
        external_files(tmp_path / "graph.onnx")


def test_graphs_inside_one_another_without_end(tmp_path: Path) -> None:
    """Written by hand: the library refuses to."""

    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), bytearray()
        while True:
            length.append(size & 0x7F | (0x80 if size > 0x7F else 0))
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + bytes(length) + content

    inner = b""
    for _ in range(80):
        inner = field(1, field(5, field(6, inner)))
    (tmp_path / "graph.onnx").write_bytes(field(7, inner))
    with pytest.raises(PackageError, match="deep"):
        external_files(tmp_path / "graph.onnx")
