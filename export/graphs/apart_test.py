"""Graphs made in another process are those made here, whatever becomes of that process."""

from __future__ import annotations

import gc
import os
import sys
import threading
from functools import partial
from pathlib import Path

import onnx
import pytest

from export.graphs import apart
from export.graphs.apart import Forked, GraphsApart, Started


@pytest.fixture(autouse=True, params=[True, False], ids=["forked", "new"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of processes. Threads of pytest's plugins do not matter to these graphs."""
    if request.param and sys.platform != "linux":
        pytest.skip("a process is forked on Linux alone")
    monkeypatch.setattr(apart, "may_fork", lambda: request.param)


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
    assert not process.alive()
    assert graphs.graph("b").graph.name == "b"
    graphs.end()


def test_it_does_not_wait_until_a_graph_is_asked_for(tmp_path: Path) -> None:
    """A pipe holds less than one of these."""
    graphs = GraphsApart({name: partial(large, name, tmp_path) for name in "ab"})
    graphs.begin("a")
    process = graphs._process
    assert process is not None
    while "b" not in made(tmp_path):
        assert process.alive()
    assert graphs.graph("b").doc_string == "b" * LARGE
    graphs.end()


LARGE = 1 << 20


def large(name: str, folder: Path) -> onnx.ModelProto:
    model = named(name, folder)
    model.doc_string = name * LARGE
    return model


def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not apart.may_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert apart.may_fork() is (sys.platform == "linux")


def test_what_the_parent_holds_is_not_held(tmp_path: Path) -> None:
    """Else a lock would outlive the export that was killed."""
    held = (tmp_path / "lock").open("w")
    graphs = GraphsApart({"files": partial(open_files, tmp_path)})
    graphs.begin("files")
    assert isinstance(graphs._process, Forked | Started)
    assert "lock" not in graphs.graph("files").doc_string
    graphs.end()
    held.close()


def open_files(folder: Path) -> onnx.ModelProto:
    """A graph that tells the names of the files in a folder which this process has open."""
    places = list(Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else []
    names = [str(place.readlink()) for place in places if place.exists()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "files", [], []))
    model.doc_string = " ".join(Path(name).name for name in names if name.startswith(str(folder)))
    return model


class Noting:
    """In a cycle of garbage; writes down the process that collects it."""

    def __init__(self, ended_in: Path) -> None:
        self.ended_in, self.itself = ended_in, self

    def __del__(self) -> None:
        with self.ended_in.open("a") as ended:
            ended.write(f"{os.getpid()} ")


def test_the_garbage_of_this_process_is_not_collected_in_the_other(tmp_path: Path) -> None:
    """Its threads, which an object that is ended may wait for, are not there."""
    (tmp_path / "made").mkdir()
    graphs = graphs_of(tmp_path / "made", "a")
    thresholds = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)  # whatever is made from now on
    try:
        with pytest.MonkeyPatch.context() as patched:
            fork = os.fork

            def with_garbage() -> int:
                Noting(tmp_path / "ended")
                return fork()

            patched.setattr(os, "fork", with_garbage)
            graphs.begin("a")
        assert graphs.graph("a").graph.name == "a" and gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
        graphs.end()
    gc.collect()
    if isinstance(graphs._process, Forked):
        assert (tmp_path / "ended").read_text().split() == [str(os.getpid())]
