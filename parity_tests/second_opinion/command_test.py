"""What is asked, what is said and the exit code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.families.registry import families
from parity_tests.cli import main
from parity_tests.judging.judge import Verdict
from parity_tests.judging.metrics import Kind
from parity_tests.second_opinion.opinion import Disagreement, Finding, NotComparable, Part
from parity_tests.second_opinion.parts import PARTS, second_opinion, verdict_of
from parity_tests.second_opinion.subject import Subject
from runtime_py.errors import ExitCode

DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"
GOLDENS = Path(__file__).parents[1] / "goldens"
ASKED = {
    "minicpm-v": {"ids", "pixels", "tower", "decoder"},
    "omnilmm-12b": {"ids", "pixels", "decoder"},
    "wemm": {"ids", "pixels", "tower", "decoder"},
    "xverse-v": {"ids", "pixels", "tower", "decoder"},
    "cogvlm2": {"ids", "pixels", "decoder"},
    "awaker2.5-vl": {"ids", "pixels", "whole"},
}
"""Parts that transformers has of each demo."""

ASKED_OF_GOLDENS = {
    "qwen2-vl": {"pixels", "whole"},
    "minicpm-llama3-v": {"pixels", "tower", "decoder"},
    "minicpm-v-2": {"pixels", "tower", "decoder"},
    "cogvlm2-video": {"decoder"},
}
"""The same of goldens, which hold no tokenizer."""


def test_a_family_is_asked_in_every_part_or_has_a_reason_or_is_in_none() -> None:
    """One that nobody has compared is said to be unknown (`Part.ask`)."""
    listed = set(PARTS[0].examine) | set(PARTS[0].lacking)
    assert listed <= set(families())
    for part in PARTS:
        assert set(part.examine) | set(part.lacking) == listed, part.name
        assert not set(part.examine) & set(part.lacking)
        assert set(part.against) == set(part.examine)


@pytest.mark.parametrize("family", ASKED)
def test_demos_are_what_transformers_says(family: str) -> None:
    pytest.importorskip("transformers")
    said = second_opinion(DEMOS / family)
    assert [opinion for opinion in said if opinion.verdict is Verdict.FAIL] == []
    assert {opinion.part for opinion in said if opinion.verdict is Verdict.PASS} == ASKED[family]
    assert max(opinion.error for opinion in said) < 5e-6


@pytest.mark.parametrize("name", ASKED_OF_GOLDENS)
def test_goldens_of_the_other_families_are_what_transformers_says(name: str) -> None:
    pytest.importorskip("transformers")
    said = second_opinion(GOLDENS / name)
    assert [opinion for opinion in said if opinion.verdict is Verdict.FAIL] == []
    assert verdict_of(said) is Verdict.PASS
    assert {opinion.part for opinion in said if opinion.verdict is Verdict.PASS} == ASKED_OF_GOLDENS[name]
    assert max(opinion.error for opinion in said) < 5e-6


def test_a_demo_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    asked = ["--second-opinion", "--model", "minicpm-v", "--weights", "demo", "--json-file", str(tmp_path / "said.json")]
    asked += ["--report-dir", str(tmp_path / "report")]
    assert main(asked) == ExitCode.OK
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[0] == "stage" and table[-1] == "verdict: pass"
    assert any("GraniteForCausalLM" in line and "relative_max" in line and line.endswith("pass") for line in table)
    value = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "report" / "second_opinion.json").read_text(encoding="utf-8")) == value
    page = (tmp_path / "report" / "second_opinion.md").read_text(encoding="utf-8").splitlines()
    assert page[0] == "# Second opinion: pass" and len(page) == 4 + len(value["opinions"])
    assert value["verdict"] == "pass" and value["first_failure"] is None and value["checkpoint"] == "minicpm-v"
    passed = [row for row in value["opinions"] if row["verdict"] == "pass"]
    assert {row["part"] for row in passed} == ASKED["minicpm-v"]
    assert all(row["metric"] and 0 <= row["error"] <= row["limit"] for row in passed)
    others = [row for row in value["opinions"] if row["verdict"] != "pass"]
    assert {(row["part"], row["verdict"]) for row in others} == {("whole", "not run")} and all(row["why"] for row in others)


def test_without_the_library_nothing_was_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else found(name, *more)
    )
    assert main(["--second-opinion", "--checkpoint", str(DEMOS / "wemm")]) == ExitCode.ENVIRONMENT
    shown = capsys.readouterr()
    assert "transformers is not installed" in shown.out and "nothing was compared" in shown.err


@pytest.mark.parametrize(
    "given", [[], ["--checkpoint", "a", "--model", "minicpm-v"], ["--checkpoint", "/no/such/folder"]], ids=len
)
def test_one_checkpoint_is_named(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--second-opinion", *given]) == ExitCode.USAGE
    assert "checkpoint" in capsys.readouterr().err


def _part(examine: Any) -> Part:
    return Part("decoder", "decoder", "sizes", {"wemm": "Llama"}, {"wemm": examine}, {"cogvlm2": "no such tower"})


class _Asked:
    family = "wemm"


class _Other:
    family = "cogvlm2"


def _finding(theirs: list[float], ours: list[float]) -> Finding:
    return Finding("logits", Kind.LOGITS, np.array([[theirs]], np.float32), np.array([[ours]], np.float32))


def test_findings_are_judged() -> None:
    def examine(subject: Subject) -> Any:
        yield _finding([1.0, 2.0], [1.0, 2.0])
        yield _finding([1.0, 2.0], [1.0, 2.001])
        yield _finding([1.0, 2.0], [1.0, 2.0, 3.0])
        yield _finding([1.0, float("nan")], [1.0, 2.0])
        yield _finding([], [])

    said = _part(examine).ask(_Asked())  # type: ignore[arg-type]
    assert [str(opinion.verdict) for opinion in said] == ["pass", "fail", "fail", "fail", "fail"]
    assert "limit" in said[1].why and "shape" in said[2].why
    assert verdict_of(said) is Verdict.FAIL


@pytest.mark.parametrize(
    ("error", "verdict"), [(NotComparable, Verdict.NOT_RUN), (ImportError, Verdict.NOT_RUN), (Disagreement, Verdict.FAIL)]
)
def test_what_cannot_be_compared_and_what_does_not_fit_are_told_apart(error: type[Exception], verdict: Verdict) -> None:
    def examine(subject: Subject) -> Any:
        raise error("for this reason")
        yield

    (said,) = _part(examine).ask(_Asked())  # type: ignore[arg-type]
    assert said.verdict is verdict and said.why.endswith("for this reason")
    (other,) = _part(examine).ask(_Other())  # type: ignore[arg-type]
    assert (other.verdict, other.why) == (Verdict.NOT_RUN, "no such tower")
    assert verdict_of([other]) is Verdict.NOT_RUN
