"""The command lines of the export: plain errors, stable exit codes, one list of flags."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.__main__ import main, root
from export.backends.options import option_flags
from export.command import cli, model_flags
from export.request import ExportRequest
from runtime_py.command.dispatch import execute

DEMO = ("--model", "minicpm-v", "--weights", "demo", "--target", "cpu", "--dry-run")
HOW = {"help", "version", "dry_run", "json", "verbose", "quiet", "push", "private"}


def edgeproof(*arguments: str) -> int:
    return execute(root(), "edgeproof", arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model", "minicpm-v", "--target", "toaster"], "there is no such target"),
        (["--model", "minicpm-v", "--target", "andriod"], "did you mean android?"),
        (["--model", "minicpm-v", "--target", "cpu", "--contxt", "3"], "did you mean --context?"),
        (["--model", "minicpm-v", "--target", "cpu", "--context", "many"], "--context"),
        (["--model", "minicpm-v", "--target", "cpu", "--precision", "int3"], "--precision int3"),
        (["--model", "minicpm-v", "--target", "cpu", "--device", "pc-8g"], "did you mean pc-8gb?"),
        (["--model", "minicpm-v", "--target", "cpu", "--seed", "3"], "an export draws nothing at random"),
        (["--model", "minicmp-v", "--target", "cpu"], "did you mean minicpm-v"),
        (["--model", "minicmp-v", "--target", "cpu", "--dry-run"], "did you mean minicpm-v"),
        (["--model", "minicmp-v", "--target", "cpu", "--weights", "demo"], "did you mean minicpm-v"),
        (["--model", "minicmp-v", "--target", "cpu", "--weights", "."], "did you mean minicpm-v"),
        (
            ["--model", "minicpm-v", "--target", "cpu", "--weights", "demo", "--dry-run", "--codes", "nowhere"],
            "nowhere is no finished calibration",
        ),
        ([*DEMO, "--private"], "--private without --push"),
        ([*DEMO, "--push", "you/name", "--skip-verify"], "what was not verified is not pushed"),
        (["syntesize"], "did you mean synthesize?"),
    ],
)
def test_wrong_flags_are_one_message_with_three_parts(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("error:") == 1
    assert "  expected: " in printed.err
    assert "  next: " in printed.err
    assert "Traceback" not in printed.err


def test_every_model_flag_fills_a_field_of_the_request() -> None:
    known = {field.name for field in fields(ExportRequest) if field.init}
    taken = {action.dest for action in cli.parser("x")._actions} - HOW
    options = {name for name in taken if name.startswith(model_flags.OPTION)}
    assert options <= {model_flags.OPTION + option.name for option in option_flags()}, (
        "choices of backends go into `options`"
    )
    m = model_flags
    declared = (*m.MODEL, *m.TARGET, *m.LIMITS, *m.CALIBRATION, *m.DEVICE, *m.OUTPUT, *m.AGAIN, *m.WAIVERS)
    assert {flag.field for flag in declared} <= taken - options <= known


def test_flags_become_the_request() -> None:
    given = cli.parser("x").read(
        ["--model", "m", "--target", "cpu", "--block_size", "32", "--asymmetric", "--codes", "there", "-o", "out", "--force"]
    )
    asked = model_flags.request_of(ExportRequest, given)
    expected = ExportRequest(
        model="m", target="cpu", block_size=32, asymmetric=True, calibration=Path("there"), output=Path("out"), force=True
    )
    assert asked == expected


def test_a_published_name_is_planned_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("minicpm-v-2", "OPENBMB/minicpm-v2"):
        assert main(["--model", name, "--target", "cpu", "--dry-run", "--json"]) == 0
        assert "openbmb/MiniCPM-V-2" in capsys.readouterr().out


def test_models_are_listed_with_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert edgeproof("models", "--json") == 0
    rows = {row["family"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert rows["minicpm-v"]["demo"] and "omnilmm-3b" in rows["minicpm-v"]["aliases"]
    assert {"hub_id": "openbmb/MiniCPM-V-2", "variant": "2.0"} in rows["minicpm-v"]["checkpoints"]
    assert edgeproof("models") == 0
    out = capsys.readouterr().out
    assert all(one["hub_id"] in out for row in rows.values() for one in row["checkpoints"])
    assert edgeproof("models", "minicpm-v2") == 0
    assert capsys.readouterr().out == "openbmb/MiniCPM-V-2: minicpm-v 2.0\n"
    assert edgeproof("models", "minicmp") == 2


def test_a_checkpoint_is_synthesized_and_says_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["synthesize", "--model", "minicpm-v-2", "--size", "tiny", "--json", "-q"]
    assert edgeproof(*asked, "-o", str(tmp_path / "a"), "--seed", "-1") == 0
    first = json.loads(capsys.readouterr().out)
    assert edgeproof(*asked, "-o", str(tmp_path / "b"), "--seed", str(first["seed"])) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert json.loads((tmp_path / "a" / "config.json").read_text())["slice_mode"] is True, "2.0"
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_the_console_command_leads_to_every_program(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (verb.name for verb in root().verbs):
        assert edgeproof(verb, "--help") == 0
        assert capsys.readouterr().out.startswith(f"usage: edgeproof {verb} ")
    assert edgeproof("calibrate", "search", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: edgeproof calibrate search ")
    assert edgeproof("targets", "--brief") == 0
    assert "desktop-gpu" in capsys.readouterr().out
    assert edgeproof("fly") == 2
    assert "there is no such verb" in capsys.readouterr().err


def test_a_version_that_is_not_built_is_an_unsupported_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "minicpm-v-2.6", "--target", "cpu", "--dry-run"]) == 3
    assert "is a version of minicpm-v that is not built" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "command"), [("tokenizer.json", "chat"), ("config.json", "info")])
def test_the_command_that_an_export_ends_with_works_on_its_package(file: str, command: str) -> None:
    package: Any = SimpleNamespace(folder=Path("my out"), manifest={"files": [{"path": file}]})
    assert cli.next_command(package).startswith(f"edgeproof {command} --package 'my out'")
