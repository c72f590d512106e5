"""What of a package is not asked is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from parity_tests.check.candidate import _beside
from parity_tests.check.package_check import unjudged
from runtime_py.backends.records import ONNX, TENSORRT
from runtime_py.package import Package


def package_with(*names: str) -> Package:
    manifest: dict[str, Any] = {"backends": {name: {} for name in names}}
    package = Package.__new__(Package)
    object.__setattr__(package, "manifest", manifest)
    object.__setattr__(package, "folder", Path())
    return package


def test_engines_beside_graphs_are_listed_as_not_run() -> None:
    (row,) = _beside(package_with(ONNX.name, TENSORRT.name), {ONNX.name})
    assert row[0] == TENSORRT.files and TENSORRT.runtime_name in row[1]


def test_a_run_says_what_its_manifest_says_and_what_was_not_run(tmp_path: Path) -> None:
    told = {"family": "wemm", "variant": "1.0", "target": "cpu", "precision": "int4"}
    manifest = {**told, "tools": {"torch": "2"}, "waivers": [{"name": "skip-verify", "meaning": "not compared"}]}
    left = (("TensorRT engines", "no GPU"),)
    candidate: Any = SimpleNamespace(folder=tmp_path / "out.partial", manifest=manifest, name="ort", not_run=left)
    run = unjudged(candidate, [], "typed")
    assert {key: getattr(run, key) for key in told} == told
    assert (run.case, run.backend, run.command, run.not_run) == ("out", "ort", "typed", left)
    assert run.environment["package: torch"] == "2"
    assert run.details.waivers == (("skip-verify", "not compared"),)


def test_what_was_asked_is_not_listed() -> None:
    both = package_with(TENSORRT.name, ONNX.name)
    assert _beside(both, {TENSORRT.name, ONNX.name}) == ()
    assert _beside(both, {TENSORRT.name}) == ()  # the graphs were not needed: they run without a device
