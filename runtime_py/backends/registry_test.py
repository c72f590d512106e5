"""Records of backends: light, distinct, true to the classes they open and to what pyproject.toml installs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime_py.backends import registry
from runtime_py.backends.base import Rewinding
from runtime_py.backends.mlc import MlcBackend
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.record import Ability, RuntimeBackend
from runtime_py.backends.records import BUILT_IN, MLC, ONNX, TENSORRT
from runtime_py.backends.registry import held_backends, register, runtime_backend, runtime_backends, withdraw
from runtime_py.backends.trt import TrtBackend
from runtime_py.errors import MachineError, UsageError

CLASSES: dict[str, type[OrtBackend] | type[MlcBackend] | type[TrtBackend]] = {
    ONNX.runtime_name: OrtBackend,
    MLC.runtime_name: MlcBackend,
    TENSORRT.runtime_name: TrtBackend,
}

OUTSIDE = replace(ONNX, name="elsewhere", runtime_name="else")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What a test brings in is gone after it."""
    registry.brought_records.cache_clear()
    yield
    withdraw(OUTSIDE)
    registry.brought_records.cache_clear()


def test_names_are_distinct_and_every_class_goes_by_its_records() -> None:
    assert len({record.name for record in BUILT_IN}) == len({record.runtime_name for record in BUILT_IN}) == len(BUILT_IN)
    for record in BUILT_IN:
        assert runtime_backend(record.runtime_name) is record
        assert CLASSES[record.runtime_name].name == record.runtime_name


def test_what_a_record_promises_its_class_does() -> None:
    for record in BUILT_IN:
        assert record.can(Ability.REWIND) == issubclass(CLASSES[record.runtime_name], Rewinding)


def test_distributions_are_those_that_the_extras_install() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for record in BUILT_IN:
        for wanted in record.distributions:
            assert f"{wanted.name}{wanted.versions}" in declared["optional-dependencies"][wanted.extra]
            assert wanted.versions.startswith(">=" + ".".join(map(str, wanted.lowest)))


def test_reading_the_records_imports_no_library() -> None:
    script = (
        "import sys\nfrom runtime_py.backends.registry import runtime_backends\nassert len(runtime_backends()) > 2\n"
        "assert not {'numpy', 'tvm', 'onnxruntime', 'tensorrt_rtx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_registered_backend_is_known_until_it_is_withdrawn() -> None:
    register(OUTSIDE)
    assert list(runtime_backends()) == [*(record.runtime_name for record in BUILT_IN), "else"]
    assert held_backends({"backends": {"elsewhere": {}, "unheard-of": {}, ONNX.name: {}}}) == [OUTSIDE, ONNX]
    withdraw(OUTSIDE)
    with pytest.raises(UsageError, match="backend 'else'"):
        runtime_backend("else")


@pytest.mark.parametrize("taken", [replace(OUTSIDE, name=ONNX.name), replace(OUTSIDE, runtime_name=MLC.runtime_name)])
def test_names_that_are_taken_are_refused(taken: RuntimeBackend) -> None:
    with pytest.raises(UsageError, match="two backends named"):
        register(taken)


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, value: object) -> None:
        self.name, self.value, self._value = "else", "elsewhere.records:BACKEND", value
        self.dist = importlib.metadata.distribution("numpy")

    def load(self) -> object:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def brought(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point(value)] if group == registry.GROUP else [])


def test_an_installed_distribution_brings_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    brought(monkeypatch, OUTSIDE)
    assert runtime_backend("else") is OUTSIDE


@pytest.mark.parametrize("value", [ImportError("libelse.so is missing"), "no record"])
def test_an_installed_backend_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    brought(monkeypatch, value)
    with pytest.raises(MachineError) as caught:
        runtime_backends()
    assert "the backend 'else' of numpy cannot be loaded" in caught.value.what
    assert caught.value.next_step == "update or uninstall numpy"
