"""What of an earlier run is this very export: every choice that decides bytes, and a finished package that is another's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.opened import OpenedCheckpoint, open_checkpoint
from export.package import resumption
from export.package.journal import sha256_of
from export.package.manifest import assignment_rows
from export.package.resumption import fingerprint, finished_before
from export.pipeline import plan
from export.plan.plan import Plan
from export.request import ExportRequest
from runtime_py.errors import UsageError

GOLDENS = Path(__file__).parents[2] / "parity_tests" / "goldens"
ASKED = ExportRequest(
    str(GOLDENS / "minicpm-v"), "cpu", precision="int4", context=96, prefill_chunk=32, without_tokenizer=True, resume=True
)


def planned(request: ExportRequest) -> tuple[OpenedCheckpoint, Plan]:
    return open_checkpoint(request), plan(request, None)


def different(one: ExportRequest, other: ExportRequest) -> set[str]:
    then, now = (fingerprint(request, *planned(request)) for request in (one, other))
    return {key for key in {*then, *now} if then.get(key) != now.get(key)}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"context": 64}, {"context"}),
        ({"prefill_chunk": 16}, {"prefill_chunk"}),
        ({"precision": "fp32"}, {"precision"}),
        ({"block_size": 16}, {"options"}),
        ({"vision_precision": "fp32"}, {"options"}),
        ({"options": {"cache": "float16"}}, {"options"}),
        ({"target": "desktop-gpu"}, {"target"}),
        ({"model": str(GOLDENS / "minicpm-v-2"), "context": 64}, {"context", "model", "model_described", "checkpoint"}),
    ],
)
def test_a_choice_that_decides_bytes_is_another_export(changes: dict[str, Any], keys: set[str]) -> None:
    assert different(ASKED, replace(ASKED, **changes)) - {"tools"} == keys


def test_sequences_of_a_call_and_a_phones_library_are_choices_too() -> None:
    engine, phone = replace(ASKED, target="server-gpu"), replace(ASKED, target="android")
    assert different(engine, replace(engine, batch=4)) == {"batch"}
    assert different(phone, replace(phone, host_only=True)) == {"options"}


@pytest.mark.parametrize("changes", [{"output": Path("elsewhere")}, {"skip_verify": True}, {"resume": False, "force": True}])
def test_what_decides_no_byte_is_the_same_export(changes: dict[str, Any]) -> None:
    assert different(ASKED, replace(ASKED, **changes)) == set()


def test_other_weights_files_tools_and_versions_are_another_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(GOLDENS / "minicpm-v", tmp_path / "checkpoint"))
    (tmp_path / "choice.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    given = replace(ASKED, model=str(folder), calibration=tmp_path, choice=tmp_path / "choice.json")
    checkpoint, work = planned(replace(given, calibration=None, choice=None))

    def changed(change: Callable[[], Any]) -> set[str]:
        then = fingerprint(given, checkpoint, work)
        change()
        now = fingerprint(given, checkpoint, work)
        return {key for key in then if then[key] != now[key]}

    weights = folder / "model.safetensors"
    assert changed(lambda: os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))) == {"checkpoint"}
    assert changed(lambda: weights.write_bytes(weights.read_bytes() + b" ")) == {"checkpoint"}
    assert changed(lambda: (tmp_path / "manifest.json").write_text("[]")) == {"calibration"}
    assert changed(lambda: (tmp_path / "choice.json").write_text("[]")) == {"choice"}
    assert changed(lambda: monkeypatch.setattr(resumption, "VERSION", "0")) == {"edgeproof"}
    assert changed(lambda: monkeypatch.setattr(resumption, "tool_versions", lambda names: {"torch": "0"})) == {"tools"}
    plain, without = (fingerprint(one, checkpoint, work) for one in (given, replace(given, calibration=None, choice=None)))
    assert without["calibration"] is None and "choice" in plain and "choice" not in without


def made_of(checkpoint: OpenedCheckpoint) -> list[dict[str, Any]]:
    return [
        {"path": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in checkpoint.files().items()
    ]


@pytest.fixture
def finished(tmp_path: Path) -> tuple[ExportRequest, OpenedCheckpoint, Plan, dict[str, Any]]:
    """A request, and the manifest that its package would have as far as a resume looks at it."""
    request = replace(ASKED, precision="fp32", output=tmp_path / "out")
    checkpoint, work = planned(request)
    limits = work.options.limits
    manifest = {
        "schema": 2, "edgeproof": "1", "files": [], "target": "cpu", "precision": "fp32",
        "source": {"id": checkpoint.id, "revision": None, "files": made_of(checkpoint)},
        "limits": {"context": limits.context, "prefill_chunk": limits.prefill_chunk, "batch": 1},
        "backends": {"onnx": {"cache": "float32", "accuracy_level": 4}},
        "assignments": assignment_rows(work.parts["onnx"].assignments),
        "waivers": request.waivers(),
    }  # fmt: skip
    return request, checkpoint, work, manifest


Finished = tuple[ExportRequest, OpenedCheckpoint, Plan, dict[str, Any]]


def written(request: ExportRequest, manifest: Mapping[str, Any]) -> None:
    request.output_folder().mkdir(exist_ok=True)
    (request.output_folder() / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_a_finished_package_of_the_same_request_is_nothing_to_resume(finished: Finished) -> None:
    request, checkpoint, work, manifest = finished
    assert not finished_before(request, checkpoint, work), "there is none yet"
    written(request, manifest)
    assert finished_before(request, checkpoint, work)
    del manifest["limits"]["batch"]
    written(request, manifest)
    assert finished_before(request, checkpoint, work), "as packages were written before calls took several sequences"
    request.output_folder().with_name("out.partial").mkdir()
    assert not finished_before(request, checkpoint, work), "a newer one was begun"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("target",), "desktop-gpu"),
        (("precision",), "int4"),
        (("source", "id"), "another"),
        (("source", "revision"), "f00d"),
        (("limits", "context"), 64),
        (("limits", "prefill_chunk"), 16),
        (("limits", "batch"), 4),
        (("assignments", "decoder.head", "storage"), "int8"),
        (("backends", "onnx", "cache"), "float16"),
        (("backends", "onnx", "calibration"), {"manifest_sha256": "0" * 64}),
        (("backends",), {}),
        (("waivers",), []),
    ],
)
def test_a_finished_package_of_another_request_is_in_the_way(finished: Finished, place: tuple[str, ...], value: Any) -> None:
    request, checkpoint, work, manifest = finished
    inside: Any = manifest
    for key in place[:-1]:
        inside = inside[key]
    assert inside.get(place[-1]) != value
    inside[place[-1]] = value
    written(request, manifest)
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)
    assert not finished_before(replace(request, resume=False, force=True), checkpoint, work)


def test_a_finished_package_of_another_calibration_is_in_the_way(finished: Finished, tmp_path: Path) -> None:
    request, checkpoint, work, manifest = finished
    request = replace(request, calibration=tmp_path / "calibration")
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "manifest.json").write_text("{}", encoding="utf-8")
    written(request, manifest)
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)
    of_it = sha256_of(tmp_path / "calibration" / "manifest.json")
    manifest["backends"]["onnx"]["calibration"] = {"manifest_sha256": of_it}
    written(request, manifest)
    assert finished_before(request, checkpoint, work)
    (tmp_path / "calibration" / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)


def test_a_finished_package_of_weights_that_were_trained_on_is_in_the_way(finished: Finished, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDENS / "minicpm-v", tmp_path / "minicpm-v"))
    request = replace(finished[0], model=str(folder))
    (checkpoint, work), manifest = planned(request), finished[3]
    written(request, manifest)
    weights = folder / "model.safetensors"
    then = weights.read_bytes()
    assert finished_before(request, checkpoint, work), "the same bytes in another folder"
    later = (request.output_folder() / "manifest.json").stat().st_mtime_ns + 10**9
    os.utime(weights, ns=(later, later))
    assert finished_before(request, checkpoint, work), "a copy of them that is newer"
    weights.write_bytes(then[:-1] + bytes([then[-1] ^ 1]))
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)
    weights.write_bytes(then + b" ")
    os.utime(weights, ns=(1, 1))
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)
    weights.write_bytes(then)
    manifest["source"]["files"].pop()
    written(request, manifest)
    with pytest.raises(UsageError, match="exists already"):
        finished_before(request, checkpoint, work)
