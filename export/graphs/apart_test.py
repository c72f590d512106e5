"""Graphs made in another process are those made here, whatever becomes of that process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
import pytest

from export.graphs.apart import GraphsApart


def named(name: str, folder: Path) -> onnx.ModelProto:
    """A graph of this name; notes that it was made. ``none`` cannot be made."""
    print("libraries print")
    with (folder / name).open("a") as made:
        made.write("x")
    if name == "none":
        raise ValueError(name)
    return onnx.helper.make_model(onnx.helper.make_graph([], name, [], []))


def graphs_of(folder: Path, *names: str) -> GraphsApart:
    return GraphsApart({name: partial(named, name, folder) for name in names})


def made(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_graphs_come_from_the_other_process_from_the_one_that_is_begun(tmp_path: Path) -> None:
    graphs = graphs_of(tmp_path, "a", "b", "c")
    graphs.begin("b")
    graphs.begin("c")
    assert [graphs.graph(name).graph.name for name in "bc"] == ["b", "c"]
    assert made(tmp_path) == {"b": 1, "c": 1}
    assert graphs.graph("a").graph.name == "a"
    graphs.end()


def test_what_it_cannot_make_is_made_here_and_fails_here(tmp_path: Path) -> None:
    graphs = graphs_of(tmp_path, "a", "none", "b")
    graphs.begin("a")
    assert graphs.graph("a").graph.name == "a"
    with pytest.raises(ValueError, match="none"):
        graphs.graph("none")
    assert graphs.graph("b").graph.name == "b"
    assert made(tmp_path) == {"a": 1, "none": 2, "b": 1}
    graphs.end()


def test_ended_early_it_is_gone(tmp_path: Path) -> None:
    graphs = graphs_of(tmp_path, "a", "b")
    graphs.begin("a")
    process = graphs._process
    assert process is not None
    graphs.end()
    assert process.returncode is not None
    assert graphs.graph("b").graph.name == "b"
    graphs.end()
