"""The measure gives full marks to an oracle, none to a liar, and never repeats training pictures."""

from __future__ import annotations

import numpy as np
import pytest

from export.demo.accuracy import HELD_OUT_SEED, Case, Result, held_out, main, measure, score
from export.demo.questions import KINDS, LANGUAGES, TASKS
from export.demo.recipes.minicpm_v import SIDE
from parity_tests.laboratory.demo_training.train import main as train
from runtime_py.errors import ExitCode

CASES = held_out(60, SIDE)


def test_cases_cover_all_kinds_in_both_languages_and_other_sizes() -> None:
    assert {(case.question.kind, case.question.language) for case in CASES} >= {(k, la) for k in TASKS for la in LANGUAGES}
    assert {case.question.kind for case in CASES} == set(KINDS)
    assert 10 < len({case.picture.shape for case in CASES}) < 60


def test_cases_are_the_same_every_time() -> None:
    again = held_out(60, SIDE)
    assert [case.question for case in CASES] == [case.question for case in again]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(CASES, again, strict=True))


def test_the_held_out_seed_cannot_be_trained_on(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["-o", str(tmp_path), "--seed", str(HELD_OUT_SEED)]) == ExitCode.USAGE
    assert "draws the held-out pictures" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_oracle_scores_one_and_a_liar_zero() -> None:
    truth = {(case.picture.tobytes(), case.question.text): case.question.answer for case in CASES}
    result = measure(lambda picture, text: truth[picture.tobytes(), text] + " ", CASES)
    assert result.share(KINDS) == 1.0
    assert measure(lambda picture, text: "", CASES).share(KINDS) == 0.0


def test_shares_are_counted_per_kind_and_language() -> None:
    result = score(CASES, [case.question.answer if case.question.language == "en" else "?" for case in CASES])
    assert result.share(["colour"], ["en"]) == 1.0
    assert result.share(["colour"], ["zh"]) == 0.0
    assert 0.3 < result.share(TASKS) < 0.7
    assert "| digit | 100.0 % | 0.0 % |" in result.markdown()
    assert result.to_json()["five_tasks"] == round(result.share(), 4)


def test_nothing_asked_is_not_full_marks() -> None:
    assert Result({}, {}).share() == 0.0


def test_the_command_prints_the_table(untrained, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "counts.json"
    assert main(["--weights", str(untrained), "--pictures", "3", "--grid", "q4f16_1", "--json-file", str(path)]) == 0
    assert "| five tasks | 0.0 % | 0.0 % |" in capsys.readouterr().out
    assert '"five_tasks": 0.0' in path.read_text(encoding="utf-8")


def test_a_case_is_a_picture_and_a_question() -> None:
    assert isinstance(CASES[0], Case)
    assert CASES[0].picture.dtype == np.uint8
