"""Two stored runs: what counts as worse, what is only told, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parity_tests.cli import main
from parity_tests.judging.diff import Change, difference
from parity_tests.judging.judge import judge
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Measurement, Run
from parity_tests.judging.standards import Standard
from parity_tests.report import json_report
from parity_tests.report.report_test import sample_run

TASK = "task: all five"


def clean_run(error: float = 0.0) -> Run:
    """A run that passes but for an error in one logit."""
    run = sample_run(error)
    return replace(
        run, divergence=None, comparisons=tuple(replace(c, measurements=c.measurements[:2]) for c in run.comparisons)
    )


def stored(folder: Path, run: Run) -> str:
    json_report.write_run(folder / "run.json", judge(run))
    return str(folder)


@pytest.mark.parametrize(
    ("before", "after", "code", "said"),
    [
        (0.0, 0.0, 0, ""),
        (0.0, 1e-4, 0, ""),
        (0.0, 1.0, 5, "was pass and fails now"),
        (1.0, 0.0, 0, ""),
        (1.0, 1.01, 0, ""),
        (1.0, 2.0, 5, "further outside its limit"),
    ],
)
def test_what_counts_as_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: float, after: float, code: int, said: str
):
    runs = [stored(tmp_path / "a", clean_run(before)), stored(tmp_path / "b", clean_run(after))]
    assert main(["diff", *runs, "--json-file", str(tmp_path / "diff.json"), "--report-dir", str(tmp_path / "out")]) == code
    value = json.loads((tmp_path / "diff.json").read_text(encoding="utf-8"))
    assert value["worse"] == bool(code) == bool(value["reasons"])
    text = capsys.readouterr().out
    assert text == (tmp_path / "out" / "diff.md").read_text(encoding="utf-8")
    assert text.startswith("# WORSE" if code else "# not worse")
    assert said in text


def test_small_changes_are_told_and_do_not_count():
    changes = difference(judge(clean_run()), judge(clean_run(1e-4)))
    changed = {
        row.place[3]: row.change for row in changes.rows if row.place[2] == "prefill_logits" and row.change != Change.SAME
    }
    assert changed["max_abs"] is Change.WORSE
    assert not changes.worse
    back = difference(judge(clean_run(1e-4)), judge(clean_run()))
    assert {row.change for row in back.rows} == {Change.BETTER, Change.SAME}


@pytest.mark.parametrize(
    ("metric", "before", "after", "change"),
    [
        ("relative_max", 1e-8, 9e-8, Change.SAME),
        ("relative_max", 1e-3, 1.01e-3, Change.SAME),
        ("relative_max", 1e-3, 1.05e-3, Change.WORSE),
        ("relative_max", 1e-8, 1e-3, Change.WORSE),
        ("worst_row_cosine", 1 - 1e-9, 1 - 9e-8, Change.SAME),
        ("worst_row_cosine", 0.999, 0.99899, Change.SAME),
        ("worst_row_cosine", 0.999, 0.9985, Change.WORSE),
        ("worst_row_cosine", 1 - 1e-9, 0.999, Change.WORSE),
        ("worst_row_cosine", 0.9985, 0.999, Change.BETTER),
    ],
)
def test_noise_is_a_share_of_an_error_and_of_a_cosine_s_distance_from_one(
    metric: str, before: float, after: float, change: Change
):
    def run(value: float) -> Run:
        row = Measurement("vision", "vision", Kind.FEATURES, (1, 2), {metric: value})
        return replace(clean_run(), comparisons=(Comparison("package", Standard.FP16, "", "", (row,)),))

    (row,) = difference(judge(run(before)), judge(run(after))).rows
    assert row.change is change


def test_a_figure_that_is_not_judged_any_more_counts():
    run = clean_run()
    fewer = replace(run, comparisons=run.comparisons[:1])
    changes = difference(judge(run), judge(fewer))
    assert changes.worse
    assert "was judged and is not any more" in changes.reasons[0]
    assert not difference(judge(fewer), judge(run)).worse


@pytest.mark.parametrize(("after", "worse"), [(0.98, False), (0.97, False), (0.96, True), (None, True)])
def test_task_accuracy_may_fall_by_a_point(after: float | None, worse: bool):
    runs = [replace(clean_run(), accuracy={} if value is None else {TASK: value}) for value in (0.98, after)]
    changes = difference(judge(runs[0]), judge(runs[1]))
    assert changes.worse is worse
    (told,) = changes.accuracy
    assert told.change is (Change.GONE if after is None else Change.SAME if after == 0.98 else Change.WORSE)
    back = difference(judge(runs[1]), judge(runs[0]))
    assert not back.worse
    assert back.accuracy[0].change is (Change.NEW if after is None else Change.SAME if after == 0.98 else Change.BETTER)
    assert not difference(judge(runs[0]), judge(runs[1]), task_points=100).worse or after is None


def test_new_limits_apply_to_both_runs(tmp_path: Path):
    runs = [stored(tmp_path / "a", clean_run()), stored(tmp_path / "b", clean_run(1e-4))]
    mine = tmp_path / "mine.json"
    mine.write_text('{"implementation-float32": {"logits": {"max_abs": 1e-6}}}', encoding="utf-8")
    assert main(["diff", *runs]) == 0
    assert main(["diff", *runs, "--thresholds", str(mine)]) == 5


def test_a_missing_run_is_a_usage_error(tmp_path: Path):
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert main(["judge", str(tmp_path / "none")]) == 2
