"""Comparisons on disk, joined and counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.evaluation.compare_table import PLAIN, Row, as_json, from_json
from calibrate.evaluation.score import Score
from parity_tests.laboratory.calibration_tables.command import main, read
from parity_tests.laboratory.calibration_tables.counts import (
    Comparison,
    chance_of,
    differing,
    no_worse,
    times_less,
    won_and_lost,
)
from runtime_py.errors import ExitCode


def score(answers: str, changed: int, cosine: float, kl: float) -> Score:
    return Score(answers.count("1") / len(answers), cosine, cosine, kl, 1.0, kl / 10, changed, answers)


FULL = Row("", "fp32", "", score("1111111100", 0, 1, 0), 0.0)
ROUNDED = Row("cpu", PLAIN, "", score("1111110111", 4, 0.98, 0.02), 0.0)
BETTER = Row("cpu", "gptq", "pictures and text", score("1111111100", 0, 0.99, 0.01), 0.0)
WORSE = Row("cpu", "hqq", "pictures and text", score("0001110101", 5, 0.97, 0.03), 0.0)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [FULL, ROUNDED, BETTER]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(as_json("m", 10, rows, 16.0)), encoding="utf-8")
    assert read(path) == Comparison("m", 10, rows, 16.0)
    assert from_json(json.loads(path.read_text(encoding="utf-8"))) == rows


def test_messages_that_show_a_score_leave_single_answers_out() -> None:
    assert "1111111100" not in str(FULL.score)


def test_a_difference_in_answers_counts_where_chance_does_not_explain_it() -> None:
    """Rounding has two answers by luck that full precision has not, and lacks one; hqq lacks four and has none."""
    one = Comparison("m", 10, [FULL, ROUNDED, BETTER, WORSE])
    assert won_and_lost(BETTER.score, ROUNDED.score) == (1, 2)
    assert no_worse([one], "gptq", PLAIN, "task as it stands") == "0 of 1"
    assert no_worse([one], "gptq", PLAIN, "task but for chance") == "1 of 1"
    assert differing([one], "gptq", PLAIN) == "1 : 2"
    assert no_worse([one], "hqq", PLAIN, "task but for chance") == "1 of 1", "four of four: one in sixteen"
    more = Row("cpu", "hqq", "pictures and text", score("0000010101", 7, 0.97, 0.03), 0.0)
    assert no_worse([Comparison("m", 10, [FULL, ROUNDED, more])], "hqq", PLAIN, "task but for chance") == "0 of 1"


def test_every_other_figure_is_held_against_rounding_as_it_is() -> None:
    one = Comparison("m", 10, [FULL, ROUNDED, BETTER, WORSE])
    for figure in ("changed", "cosine", "KL", "median KL"):
        assert no_worse([one], "gptq", PLAIN, figure) == "1 of 1"
        assert no_worse([one], "hqq", PLAIN, figure) == "0 of 1"
    assert times_less([one], "gptq", PLAIN, "cosine") == "2.00"
    assert times_less([one], "hqq", PLAIN, "KL") == "0.67"
    assert no_worse([one], "gptq", "mse-clip", "KL") == "", "nothing to compare with"


@pytest.mark.parametrize(
    ("won", "lost", "chance"), [(0, 0, 1.0), (3, 0, 1.0), (0, 1, 0.5), (0, 5, 1 / 32), (1, 4, 6 / 32), (4, 1, 31 / 32)]
)
def test_the_chance_is_the_exact_one(won: int, lost: int, chance: float) -> None:
    assert chance_of(won, lost) == chance


def test_rows_of_a_method_that_was_renamed_are_read_under_its_new_name() -> None:
    """``rtn`` in older files is rounding with searched clips; plain rounding was never called that in a table."""
    table = as_json("m", 10, [ROUNDED, replace(BETTER, method="rtn"), replace(BETTER, method="rtn, checked")])
    assert [row.method for row in from_json(table)] == [PLAIN, "mse-clip", "mse-clip, checked"]


def test_files_of_one_model_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("a", [FULL, ROUNDED, BETTER]), ("b", [FULL, ROUNDED, WORSE])):
        (tmp_path / f"{name}.json").write_text(json.dumps(as_json("m", 10, rows)), encoding="utf-8")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == ExitCode.OK
    said = capsys.readouterr().out
    assert said.count("m (10 pictures)") == 1
    assert said.count("| gptq | 80.0 / 0 / 0.99000 / 10.00, 1 |") == 1
    assert "| hqq | 0 of 1 | 30.0 | 5 | 0.97000 |" in said
    assert "| hqq | 0 of 1 | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0.67 | 0.67 | 0.67 | 0 : 4 |" in said
    assert "no worse than plain rounding" in said and "no worse than mse-clip" not in said


def test_larger_blocks_stand_beside_smaller_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [FULL, replace(ROUNDED, setting="cpu:32 (a)"), replace(WORSE, setting="cpu:128 (b)", method="gptq")]
    (tmp_path / "a.json").write_text(json.dumps(as_json("m", 10, rows)), encoding="utf-8")
    assert main([str(tmp_path / "a.json"), "--counts-only"]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "gptq on cpu:128 / plain rounding on cpu:32" in said
    assert "| m | 50.0 / 90.0 | 0.97000 / 0.98000 | 30.00, 3 / 20.00, 2 |" in said


def test_a_model_with_outliers_is_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a", 0.0), ("b", 16.0)):
        table = as_json("m", 10, [FULL, ROUNDED, BETTER], size)
        (tmp_path / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "m (10 pictures)" in said and "m (10 pictures, outlier channels 16 times larger)" in said
    assert "| gptq | 2 of 2 |" in said


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "bit choice"}', '{"kind": "comparison", "model": "m"}'])
def test_another_file_is_one_clear_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert main([str(path)]) == ExitCode.USAGE
    assert "x.json is no comparison" in capsys.readouterr().err


def test_other_pictures_cannot_be_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pictures in (("a", 10), ("b", 20)):
        (tmp_path / f"{name}.json").write_text(json.dumps(as_json("m", pictures, [FULL, ROUNDED])), encoding="utf-8")
    assert main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == ExitCode.USAGE
    assert "10 and 20 pictures" in capsys.readouterr().err
