"""A manifest whose prompt or answer settings are not the checkpoint's fails its check, with what is other and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parity_tests.check.package_check import CheckOptions, check
from parity_tests.conftest import GOLDENS, ExportedPackage


def changed(package: Path, place: tuple[str, ...], value: Any) -> Path:
    path = package / "manifest.json"
    manifest = inside = json.loads(path.read_text(encoding="utf-8"))
    for key in place[:-1]:
        inside = inside[key]
    assert inside[place[-1]] != value
    inside[place[-1]] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("place", "value", "first", "note"),
    [
        (("runtime", "prompt", "begin"), "", "settings: wide prompt (", "where the checkpoint has 1, at token 0 of "),
        (("runtime", "prompt", "picture", "before"), "", "settings: wide prompt (", "runtime in manifest.json puts "),
        (("runtime", "prompt", "roles"), {"user": "<AI>", "assistant": "<AI>"}, "settings: wide prompt (", "at token "),
        (("generation", "stop_ids"), [7], "settings: generation (", "stop_ids is [7], the checkpoint's [2]"),
        (("generation", "top_p"), 0.25, "settings: generation (", "top_p is 0.25, the checkpoint's 0.8"),
    ],
)
def test_other_settings_are_named(
    copied: ExportedPackage, place: tuple[str, ...], value: Any, first: str, note: str
) -> None:
    package = changed(copied("minicpm-v", "cpu", "fp32"), place, value)
    judged = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    assert judged.first_failure.startswith(first)
    assert judged.run.divergence is not None
    assert judged.run.divergence.stage == "preprocess" and note in judged.run.divergence.note
