"""The listing of what this machine runs packages with."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable

import pytest

from runtime_py.backends import webgpu
from runtime_py.command import devices
from runtime_py.command.cli import main
from runtime_py.errors import MachineError


def absent(_ort: object) -> object:
    raise MachineError("no provider of that name", "one that is here", "install it")


@pytest.mark.parametrize(
    ("provider", "ready", "said"),
    [
        (absent, False, "no provider of that name; install it"),
        (lambda _ort: Provider(half=True, right=True), True, "float16, its own attention"),
        (lambda _ort: Provider(half=False, right=False), True, "no float16, its own attention is wrong here and not used"),
    ],
)
def test_webgpu_is_ready_or_says_what_is_missing(
    provider: Callable[[object], object],
    ready: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(webgpu, "webgpu", provider)
    assert main(["devices", "--json"]) == 0
    listed = {(row["backend"], row["provider"]): row for row in json.loads(capsys.readouterr().out)}
    assert listed["ort", "webgpu"]["ready"] is ready
    assert listed["ort", "webgpu"]["remark"] == said
    assert listed["ort", "CPUExecutionProvider"]["ready"] is True
    assert {backend for backend, _ in listed} >= {"ort", "mlc", "trt"}


class Provider:
    def __init__(self, half: bool, right: bool) -> None:
        self.half, self.attention_is_right = half, right


def test_what_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(devices, "_installed", lambda _record: None)
    monkeypatch.setattr(webgpu, "webgpu", absent)
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("mlc") and "edgeproof[mlc]" in line and " no " in line for line in lines)


def test_providers_that_nothing_tried_are_not_called_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(webgpu, "webgpu", absent)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider", "AzureExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert main(["devices", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["backend"] == "ort"]
    assert {row["provider"]: row["ready"] for row in rows} == {
        "CUDAExecutionProvider": None, "CPUExecutionProvider": True, "webgpu": False,
    }  # fmt: skip
    assert main(["devices"]) == 0
    cuda = next(line for line in capsys.readouterr().out.splitlines() if "CUDAExecutionProvider" in line)
    assert "not tried" in cuda and "ready" not in cuda


def test_an_onnxruntime_that_is_too_old_is_not_ready(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    assert main(["devices", "--json"]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["backend"] == "ort"]
    assert (row["provider"], row["ready"]) == ("", False)
    assert row["remark"] == "ONNX Runtime 1.22.1 is too old for the graphs of a package; pip install 'onnxruntime>=1.23'"


def test_what_is_installed_is_told_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime too, by the first of its distributions that is here, where nothing of its own can be imported."""
    versions = {"apache-tvm": "0.27.1", "onnxruntime-gpu": "1.24.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    listed = {runner.backend: runner for runner in devices.runners()}
    assert listed["mlc"] == devices.Runner("mlc", "", True, "apache-tvm 0.27.1")
    assert listed["ort"] == devices.Runner("ort", "", True, "onnxruntime-gpu 1.24.0")
    assert listed["trt"] == devices.Runner("trt", "", False, "not installed: pip install 'edgeproof[tensorrt]'")


def test_the_listing_is_in_columns() -> None:
    listed = [devices.Runner("ort", "CPUExecutionProvider", True, "a"), devices.Runner("brought", "", None, "b")]
    assert devices.lines(listed) == [
        "ort      CPUExecutionProvider  ready      a",
        "brought                        not tried  b",
    ]
