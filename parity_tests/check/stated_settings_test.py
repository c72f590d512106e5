"""A manifest whose prompt or answer settings are not the checkpoint's fails its check, with what is other and where."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.package import tokenizer_files
from export.pipeline import export
from export.request import ExportRequest
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.stated_settings import other_prompt
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.judge import all_hold
from parity_tests.judging.probes import Question
from parity_tests.judging.standards import Standard
from parity_tests.report.html_report import html
from runtime_py.errors import PackageError
from runtime_py.preprocess.base import Message
from runtime_py.tokenizer import Tokenizer


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
    assert "settings: against what the checkpoint gives" in html(judged)


@pytest.mark.parametrize(
    ("found", "wrong", "note"),
    [
        ([5, 6, 7, 8], 0, ""),
        ([5, 9, 7, 8], 1, "puts 9 where the checkpoint has 6, at token 1 of 4"),
        ([5, 6], 2, "puts its end where the checkpoint has 7, at token 2 of 4"),
        ([5, 6, 7, 8, 9], 1, "puts 9 where the checkpoint has its end, at token 4 of 4"),
        ([9, 6], 3, "puts 9 where the checkpoint has 5, at token 0 of 4"),
        ([], 4, "puts its end where the checkpoint has 5, at token 0 of 4"),
        (PackageError("no mark of a picture", "one", "add it"), 4, "makes no prompt of it: no mark of a picture"),
    ],
)
def test_every_token_that_is_other_missing_or_too_many_counts(found: Any, wrong: int, note: str) -> None:
    def encode(messages: list[Message], images: list[Any]) -> np.ndarray:
        if isinstance(found, PackageError):
            raise found
        return np.array([found], np.int64)

    processor = SimpleNamespace(encode=encode)
    candidate: Any = SimpleNamespace(processor=processor, name="ort", implementation_standard=lambda: Standard.FP32)
    unkept, text = Question("ids alone", (), np.array([[1, 2]])), Question("text", (), np.array([[5, 6, 7, 8]]))
    failed = other_prompt(candidate, [unkept, replace(text, messages=(Message("user", "a"),))])
    if not wrong:
        assert failed is None
        return
    assert failed is not None
    compared, divergence = failed
    assert compared.question == "text" and not all_hold(compared, "minicpm-v")
    assert compared.measurements[0].metrics == {"mismatches": wrong}
    assert divergence.note.endswith(note)


def test_another_tokenizer_is_named(tmp_path: Path) -> None:
    """Of as many tokens, two of which have changed places."""
    package = tmp_path / "package"
    export(ExportRequest("minicpm-v", "cpu", weights="demo", output=package, precision="fp32", skip_verify=True), None)
    path = package / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    words = value["model"]["vocab"]
    words["\u2581red"], words["\u2581blue"] = words["\u2581blue"], words["\u2581red"]
    path.write_text(json.dumps(value), encoding="utf-8")
    content = path.read_bytes()
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    row = next(row for row in manifest["files"] if row["path"] == path.name)
    row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (package / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    judged = check(package, None, CheckOptions(steps=2)).judgement
    assert judged.first_failure.startswith("settings: tokenizer (stage preprocess, block tokenizer)")
    assert judged.run.divergence is not None and "'\u2581red': [" in judged.run.divergence.note


def test_every_token_is_asked_once_by_an_export_and_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity_tests.check import stated_settings
    from parity_tests.check.verifier import PackageVerifier

    asked: list[Path] = []
    whole = tokenizer_files.other_ids

    def counted(words: Tokenizer, written: Path) -> tuple[list[tokenizer_files.OtherIds], int]:
        asked.append(written)
        return whole(words, written)

    monkeypatch.setattr(tokenizer_files, "_proven", set())
    for module in (tokenizer_files, stated_settings):
        monkeypatch.setattr(module, "other_ids", counted)
    request = ExportRequest("omnilmm-12b", "cpu", weights="demo", output=tmp_path / "package", precision="fp32")
    package = export(request, PackageVerifier())
    assert len(asked) == 1
    check(package, None, CheckOptions(steps=2))
    assert len(asked) == 1
    monkeypatch.setattr(tokenizer_files, "_proven", set())
    check(package, None, CheckOptions(steps=2))
    assert len(asked) == 2
