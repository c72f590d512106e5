"""Comparisons on disk, joined and counted."""

import json
from pathlib import Path

import pytest

from calibrate.cli import main
from calibrate.compare_counts import FIGURES, Comparison, no_worse
from calibrate.compare_table import PLAIN, Row, as_json, from_json
from calibrate.score import Score
from calibrate.tables_cli import read
from runtime_py.errors import ExitCode


def score(accuracy: float, changed: int, cosine: float, kl: float) -> Score:
    return Score(accuracy, cosine, cosine, kl, 1.0, kl / 10, changed)


FULL = Row("", "fp32", "", score(0.9, 0, 1, 0), 0.0)
ROUNDED = Row("cpu", PLAIN, "", score(0.92, 6, 0.98, 0.02), 0.0)
BETTER = Row("cpu", "gptq", "pictures and text", score(0.91, 2, 0.99, 0.01), 0.0)
WORSE = Row("cpu", "hqq", "pictures and text", score(0.88, 9, 0.97, 0.03), 0.0)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [FULL, ROUNDED, BETTER]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(as_json("m", 10, rows)), encoding="utf-8")
    assert read(path) == Comparison("m", 10, rows)
    assert from_json(json.loads(path.read_text(encoding="utf-8"))) == rows


def test_luck_above_full_precision_counts_for_no_method() -> None:
    """Rounding answers more than full precision does; a method that answers less than rounding has lost nothing by it."""
    one = Comparison("m", 10, [FULL, ROUNDED, BETTER, WORSE])
    assert no_worse([one], "gptq", PLAIN, FIGURES["task"]) == "1 of 1"
    assert no_worse([one], "hqq", PLAIN, FIGURES["task"]) == "0 of 1"
    for figure in FIGURES.values():
        assert no_worse([one], "gptq", PLAIN, figure) == "1 of 1"
        assert no_worse([one], "hqq", PLAIN, figure) == "0 of 1"
    assert no_worse([one], PLAIN, PLAIN, FIGURES["KL"]) == ""
    assert no_worse([one], "gptq", "rtn", FIGURES["KL"]) == "", "nothing to compare with"


def test_files_of_one_model_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("a", [FULL, ROUNDED, BETTER]), ("b", [FULL, ROUNDED, WORSE])):
        (tmp_path / f"{name}.json").write_text(json.dumps(as_json("m", 10, rows)), encoding="utf-8")
    assert main(["tables", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == ExitCode.OK
    said = capsys.readouterr().out
    assert said.count("m (10 pictures)") == 1
    assert said.count("| gptq | 91.0 / 2 / 0.99000 / 10.00, 1 |") == 1
    assert "| hqq | 0 of 1 | 2.0 | 9 | 0.97000 | 0 of 1 |" in said


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "bit choice"}', '{"kind": "comparison", "model": "m"}'])
def test_another_file_is_one_clear_error(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert main(["tables", str(path)]) == ExitCode.USAGE
    assert "x.json is no comparison" in capsys.readouterr().err


def test_other_pictures_cannot_be_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pictures in (("a", 10), ("b", 20)):
        (tmp_path / f"{name}.json").write_text(json.dumps(as_json("m", pictures, [FULL, ROUNDED])), encoding="utf-8")
    assert main(["tables", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == ExitCode.USAGE
    assert "10 and 20 pictures" in capsys.readouterr().err
