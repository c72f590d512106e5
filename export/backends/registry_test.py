"""Records of export backends: what they declare is what their exporters do, and outside ones come with an entry point."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import pytest

from export.backends.base import BuildOptions
from export.backends.options import check_options, number_or_word, option_flags
from export.backends.record import Backend, BackendOption
from export.backends.registry import BUILT_IN, backend_named, backends, grids
from export.families.registry import families
from export.quantisation.choice import widened
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Storage
from export.source.tensor_source import EmptySource
from runtime_py.backends import records
from runtime_py.backends.registry import GROUP, brought_records, runtime_backend
from runtime_py.errors import UsageError
from targets.registry import target_named, targets


def test_every_runtime_backend_of_the_product_has_an_exporter_of_its_name() -> None:
    assert {record.runtime for record in BUILT_IN} == set(records.BUILT_IN)
    for record in BUILT_IN:
        assert backend_named(record.name) is record
        assert record.exporter().name == record.name
    with pytest.raises(UsageError, match="no backend makes files named 'coreml'"):
        backend_named("coreml")


@pytest.mark.parametrize("target", ["cpu", "desktop-gpu", "android"])
def test_backends_assign_grids_that_they_declare_and_widen_to_forms_that_they_store(target: str) -> None:
    place = target_named(target)
    for name in place.backend_names:
        record = backend_named(name)
        declared = {grid.name for grid in record.grids}
        for family in ("minicpm-v", "awaker2.5-vl"):
            family_record = families()[family]
            spec = family_record.spec(family_record.published_config("", "tiny"), EmptySource())
            assignments = record.exporter().assignments(spec, BuildOptions(place, "int4", place.limits))
            assert {assignment.grid for assignment in assignments.values() if assignment.grid} <= declared
            layer = next(layer for layer, made in assignments.items() if made.storage is Storage.INT4)
            for storage in record.wider:
                wide = widened(name, assignments, {layer: str(storage)})[layer]
                assert wide.storage is storage and (not wide.grid or wide.grid in declared)


def test_all_grids_have_names_of_their_own() -> None:
    names = [grid.name for record in BUILT_IN for grid in record.grids]
    assert len(names) == len(set(names)) == len(GRIDS)
    assert grids() == dict(GRIDS.items())


def test_options_are_offered_once_with_the_values_that_every_target_takes() -> None:
    offered = {flag.flag: flag for flag in option_flags()}
    assert len(offered) == len(option_flags())
    assert "32, 64, 128, auto (desktop-gpu, server-gpu)" in offered["--block-size"].meaning
    assert "fp16, int4 (android, ios)" in offered["--vision-precision"].meaning
    assert (offered["--block-size"].kind, offered["--vision-precision"].kind) == (number_or_word, str)
    assert (offered["--asymmetric"].kind, offered["--asymmetric"].given) == (None, False)


@pytest.mark.parametrize(
    ("target", "precision", "asked", "said"),
    [
        ("android", "int4", {"vision_precision": "int4"}, ""),
        ("cpu", "int4", {"vision_precision": "int4"}, "--vision-precision int4"),
        ("android", "int4", {"vision_precision": "int8"}, "--vision-precision int8"),
        ("cpu", "int4", {"block_size": 16}, ""),
        ("desktop-gpu", "int4", {"block_size": 16}, "--block-size 16"),
        ("cpu", "int4", {"block_size": 256}, "--block-size 256"),
        ("ios", "int4", {"block_size": 32}, "--block-size with --target ios"),
        ("cpu", "fp16", {"symmetric": False, "head_precision": "int8"}, "--asymmetric, --head-precision with --target cpu"),
        ("cpu", "int4", {"colour": "red"}, "option colour with --target cpu"),
    ],
)
def test_choices_are_held_against_the_records(target: str, precision: str, asked: dict[str, object], said: str) -> None:
    if not said:
        check_options(target_named(target), precision, asked)
        return
    with pytest.raises(UsageError) as caught:
        check_options(target_named(target), precision, asked)
    assert said in caught.value.what


def test_an_installed_distribution_brings_a_backend_with_its_target_and_option(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = replace(records.ONNX, name="elsewhere", runtime_name="else")
    place = replace(target_named("cpu"), name="else-server", backends=(runtime,))
    option = BackendOption("speed", "--speed", (1, 2), "how fast")
    brought = Backend(runtime, backend_named(records.ONNX.name).exporter, (), options=(option,), targets=(place,))

    class Point:
        name, value, dist = "else", "elsewhere:BACKEND", None

        def load(self) -> Backend:
            return brought

    with monkeypatch.context() as installed:
        installed.setattr(importlib.metadata, "entry_points", lambda group: [Point()] if group == GROUP else [])
        brought_records.cache_clear()
        assert backends()["elsewhere"] is brought and runtime_backend("else") is runtime
        assert targets()["else-server"] is place
        assert [flag.meaning for flag in option_flags() if flag.name == "speed"] == ["how fast: 1, 2 (else-server)"]
    brought_records.cache_clear()
    assert "elsewhere" not in backends()
