"""Engines built where the GPU is: from kept graphs, by the builder of every export; in the manifest once all are there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.backends.tensorrt import engine_sources, on_the_server
from export.backends.tensorrt.backend import TensorrtBackend
from export.backends.tensorrt.engine_run import build_source, engine_record
from export.backends.tensorrt.flavour import Flavour, load_flavour
from export.backends.tensorrt.prediction import PARENT, built_here, unbuilt
from export.backends.tensorrt.record import BACKEND
from runtime_py.backends.records import TENSORRT
from runtime_py.contracts import CONNECTOR, DECODER, STAGES
from runtime_py.errors import MachineError, PackageError

ROOT = Path(__file__).parents[3]
RTX = Flavour("tensorrt-rtx", "1.7", ("8.0", "8.6", "8.9", "12.0"), None)
PLAIN = Flavour("tensorrt", "10.15", (), None)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A manifest, and the descriptions that an export for a server leaves."""
    sources = tmp_path / on_the_server.FOLDER / on_the_server.SOURCES
    sources.mkdir(parents=True)
    (sources / on_the_server.BLOCK).write_text('{"cache": {"capacity": 64}, "assignments": {}}', encoding="utf-8")
    manifest = {"backends": {"onnx": {}}, "files": [{"path": "a", "bytes": 0, "sha256": ""}], "tools": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return tmp_path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stages that were built; the builder itself is tested below, with TensorRT."""
    stages: list[str] = []

    def build(source: Path, engine: Path, flavour: Flavour) -> dict[str, Any]:
        stages.append(source.stem)
        engine.write_bytes(b"engine " + flavour.name.encode())
        return engine_record(flavour, [{"name": "any", "shapes": {}}])

    monkeypatch.setattr(on_the_server, "build_source", build)
    yield stages


def test_engines_are_entered_in_the_manifest(package: Path, built: list[str]) -> None:
    assert on_the_server.build_engines(package, "9.0", PLAIN, built.append) is True
    assert [stage for stage in built if stage in STAGES] == list(STAGES)
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    block = TENSORRT.block(manifest)
    assert (block["flavour"], block["version"], block["cache"]) == ("tensorrt", "10.15", {"capacity": 64})
    rows = {row["path"]: row["bytes"] for row in manifest["files"]}
    assert list(rows) == sorted(rows) and len(rows) == 1 + 2 * len(STAGES)
    for stage in STAGES:
        assert rows[block["stages"][stage]["file"]] == len(b"engine tensorrt")
    assert not list(package.rglob("*.new")) and manifest["tools"] == {"tensorrt": "10.15"}


def test_engines_that_serve_the_gpu_are_left_alone(package: Path, built: list[str]) -> None:
    assert on_the_server.build_engines(package, "8.9", RTX, built.append)
    count = len(built)
    assert on_the_server.build_engines(package, "8.9", RTX, built.append) is False
    assert len(built) == count
    assert on_the_server.build_engines(package, "9.0", PLAIN, built.append)  # a GPU that they do not serve


def test_a_failed_build_changes_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MachineError("no", "an engine", "look")

    monkeypatch.setattr(on_the_server, "build_source", fail)
    before = (package / "manifest.json").read_bytes()
    with pytest.raises(MachineError):
        on_the_server.build_engines(package, "9.0", PLAIN, lambda _: None)
    assert (package / "manifest.json").read_bytes() == before


def test_a_package_without_graphs_is_refused(package: Path) -> None:
    (package / on_the_server.FOLDER / on_the_server.SOURCES / on_the_server.BLOCK).unlink()
    with pytest.raises(PackageError, match="no graphs"):
        on_the_server.build_engines(package, "9.0", PLAIN, lambda _: None)


def test_which_gpus_engines_serve() -> None:
    served = {name: on_the_server.served(name) for name in ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")}
    assert [name for name, yes in served.items() if not yes] == ["9.0", "10.0", "10.3"]


def test_the_builder_that_is_carried_needs_nothing_else(tmp_path: Path) -> None:
    for name in BACKEND.server_modules:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "runtime_py").symlink_to(ROOT / "runtime_py")
    code = f"import {BACKEND.server_builder} as m, sys; print(m.__file__); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_what_does_not_fit_is_left_to_the_server() -> None:
    from targets.base import Limits

    pytest.importorskip("torch")
    from export.backends.base import BuildOptions
    from export.checkpoint.opened import published_specs
    from targets.registry import target_named

    spec = next(spec for family, spec in published_specs() if family.name == "cogvlm2")
    target = target_named("server-gpu")
    options, backend = BuildOptions(target, "int4", Limits(2048, 512)), TensorrtBackend()
    assignments = backend.assignments(spec, options)
    left = unbuilt(spec, options, assignments, 20 * 10**9)
    assert DECODER in left and left[DECODER] > 20 * 10**9 - PARENT
    assert unbuilt(spec, options, assignments, 10**12) == {}
    assert built_here(spec, options, assignments, 10**12)
    for_h100 = replace(options, compute_capability="9.0")
    assert not built_here(spec, for_h100, assignments, 10**12)
    (note,) = backend.notes(spec, for_h100, assignments)
    assert "9.0" in note and "build_engines.py" in note
    small = replace(backend.predict(spec, for_h100, assignments), file_bytes={})
    assert small.export_peak == PARENT


def test_an_engine_from_a_kept_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from export.backends.tensorrt.conftest import make_build
    from export.backends.tensorrt.engine_test import GOLDENS, LIMITS

    build = make_build(GOLDENS / "minicpm-v", "fp16", tmp_path, LIMITS)
    written = engine_sources.write_source(build, CONNECTOR)
    source = next(build.folder / path for path in written if path.suffix == ".json")
    record = build_source(source, tmp_path / "connector.engine", load_flavour("tensorrt-rtx"))
    assert (tmp_path / "connector.engine").stat().st_size > 1000
    assert record["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"] and record["profiles"]
