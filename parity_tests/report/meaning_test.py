"""The verdict in words, and the presets that judge what the stored precision costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parity_tests.cli import main
from parity_tests.judging import presets
from parity_tests.judging.judge import Verdict, judge
from parity_tests.judging.presets import PRESETS, costs, with_preset
from parity_tests.judging.results import Run
from parity_tests.judging.run_details import Answer
from parity_tests.report import console_report, html_report, json_report, junit_report, markdown_report
from parity_tests.report.meaning import ABOVE_THE_FLOOR, meaning
from parity_tests.report.report_test import sample_run


def said(name: str, reference: str, candidate: str, ids: tuple[int, ...], length: int | None = None) -> Answer:
    right = {"exact": float(candidate == "red")}
    return Answer(name, "?", "", (0, 0), reference, candidate, (3, 4, 5), ids, length, ("red",), {"exact": 1.0}, right)


def run_of(*answers: Answer) -> Run:
    run = sample_run()
    kept = tuple(replace(c, measurements=c.measurements[:2], seconds=1.5) for c in run.comparisons)
    details = replace(run.details, answers=answers, waivers=())
    return replace(run, comparisons=kept, divergence=None, not_run=(), details=details)


DIFFERENT = (
    said("a", "red", "red", (3, 4, 5)),
    said("b", "red", "blue", (3, 9, 5)),
    said("c", "red", "red", (3, 4, 9), length=1),
)


def test_the_words_count_answers_and_tokens_up_to_the_stop_token():
    told = meaning(judge(run_of(*DIFFERENT)))
    assert told.exact is True
    assert told.implementation == "exact but for float32 rounding, on 1 question"
    counted = "1 of 3 answers differs; 6 of 8 greedy tokens equal; mean KL 0.01 nats"
    assert told.cost_words == f"{counted}; of 1 answer that ended within --steps 100 % right, full precision 100 %"


def test_an_answer_that_was_cut_off_is_neither_right_nor_wrong():
    """Its beginning is another text than the truth, in full precision as in the package."""
    ended = [replace(answer, length=1) for answer in DIFFERENT]
    assert meaning(judge(run_of(*ended))).cost_words.endswith("nats; 67 % right, full precision 100 %")
    long = replace(said("d", "a red", "a red", (3, 4, 5)), reference_scores={"exact": 0.0})
    words = meaning(judge(run_of(*ended, long))).cost_words
    assert words.endswith("nats; of 3 answers that ended within --steps 67 % right, full precision 100 %")
    assert "right" not in meaning(judge(run_of(long))).cost_words
    assert "Cut off by `--steps`: `d`." in markdown_report.markdown(judge(run_of(*ended, long)))
    assert "Cut off" not in markdown_report.markdown(judge(run_of(*ended)))


def test_one_answer_of_one_differs_or_none_does():
    one, other = DIFFERENT[2], DIFFERENT[1]
    assert meaning(judge(run_of(one))).cost_words.startswith("0 of 1 answer differs; ")
    assert meaning(judge(run_of(other))).cost_words.startswith("1 of 1 answer differs; ")
    assert meaning(judge(run_of(one, one))).cost_words.startswith("0 of 2 answers differ; ")


@pytest.mark.parametrize(
    ("comparison", "said"), [("wire", "--server out"), ("golden", "--package"), ("sample", "give the checkpoint")]
)
def test_what_is_not_measured_is_told_a_way_that_measures_it(comparison: str, said: str):
    run = run_of()
    run = replace(run, comparisons=tuple(replace(one, name=comparison) for one in run.comparisons))
    assert said in meaning(judge(run)).cost_words
    bare = replace(run, details=replace(run.details, similarity=()))
    assert said in with_preset(judge(bare), "release").first_failure


def test_every_report_says_it_and_none_calls_the_floor_a_pass():
    judgement = judge(run_of(*DIFFERENT))
    words = meaning(judgement).cost_words
    texts = [console_report.console(judgement), markdown_report.markdown(judgement), html_report.html(judgement)]
    for text in (*texts, junit_report.junit(judgement)):
        assert words in text
        assert "exact but for float32 rounding" in text
    for text in texts:
        assert ABOVE_THE_FLOOR in text
    value = json_report.report(judgement)
    assert value["meaning"]["cost"] == words
    assert (value["meaning"]["answers_different"], value["meaning"]["tokens_equal"]) == (1, 6)
    assert [row["means"] for row in value["comparisons"]] == ["pass", ABOVE_THE_FLOOR]


def test_a_broken_implementation_is_not_exact_in_words_and_in_junit():
    judgement = judge(replace(sample_run(1.0), not_run=()))
    told = meaning(judgement)
    assert told.exact is False
    assert told.implementation.startswith("NOT exact on 1 of 1 question; first at ")
    suites = ElementTree.fromstring(junit_report.junit(judgement)).findall("testsuite")
    assert suites[-1].find("testcase/failure") is not None


def test_without_answers_the_cost_is_not_measured():
    told = meaning(judge(run_of()))
    assert told.cost is None
    assert told.cost_words.startswith("not measured")


def test_junit_has_the_seconds_of_every_answer():
    root = ElementTree.fromstring(junit_report.junit(judge(run_of(*DIFFERENT))))
    assert root.get("time") == "3.000"
    suite = root.findall("testsuite")[0]
    assert suite.get("time") == "1.500"
    assert sum(float(case.get("time", "")) for case in suite.findall("testcase")) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("answers", "release", "strict"),
    [(DIFFERENT[:1], Verdict.PASS, "kl_mean"), (DIFFERENT, Verdict.PASS, "answers_different")],
)
def test_presets_judge_what_the_precision_costs(answers: tuple[Answer, ...], release: Verdict, strict: str):
    judgement = judge(run_of(*answers))
    assert judgement.verdict is Verdict.PASS
    released = with_preset(judgement, "release")
    assert released.verdict is release
    assert released.comparisons[-1].comparison.name == "release"
    refused = with_preset(judgement, "strict")
    assert refused.verdict is Verdict.FAIL
    assert strict in refused.first_failure


def test_a_release_fails_on_lost_points_and_on_parts_that_were_not_run():
    run = run_of(*DIFFERENT)
    lost = replace(run, accuracy={"answers: exact": 0.9, "full precision: answers: exact": 0.95})
    assert "points_lost 5" in with_preset(judge(lost), "release").first_failure
    left = replace(run, not_run=(("TensorRT engines", "no GPU"), ("3 of 23 own samples", "more than --samples")))
    assert costs(left)["parts_not_run"] == 1
    assert "parts_not_run 1" in with_preset(judge(left), "release").first_failure


RELEASE = {"kl_mean": 0.1, "top1_agreement": 0.9, "points_lost": 1.0, "parts_not_run": 0.0}
STRICT = {"kl_mean": 1.3e-3, "answers_different": 0.0, "tokens_different": 0.0, "points_lost": 0.0, "parts_not_run": 0.0}


@pytest.mark.parametrize(("name", "most"), [("release", RELEASE), ("strict", STRICT)])
def test_a_preset_holds_every_figure_up_to_its_bound_and_no_further(
    name: str, most: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    judgement = judge(run_of())
    others = {"answers_different": 9.0, "tokens_different": 9.0, "top1_agreement": 0.0}
    monkeypatch.setattr(presets, "costs", lambda run: {**others, **most})
    assert with_preset(judgement, name).verdict is Verdict.PASS
    for metric, bound in most.items():
        beyond = bound - 1e-3 if metric == "top1_agreement" else bound + 1e-3
        for value in (beyond, float("nan")):
            monkeypatch.setattr(presets, "costs", lambda run, one={metric: value}: {**others, **most, **one})
            refused = with_preset(judgement, name)
            assert refused.verdict is Verdict.FAIL
            assert refused.first_failure.startswith(f"{name}: package as delivered: {metric} ")


@pytest.mark.parametrize("name", PRESETS)
def test_what_nobody_measured_fails(name: str):
    run = replace(run_of(), details=replace(run_of().details, similarity=()))
    judgement = with_preset(judge(run), name)
    assert judgement.verdict is Verdict.FAIL
    assert "not measured" in judgement.first_failure


def test_a_stored_run_is_judged_by_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    json_report.write_run(tmp_path / "run.json", judge(run_of(*DIFFERENT)))
    assert main(["judge", str(tmp_path), "--report-dir", str(tmp_path / "again"), "--release"]) == 0
    assert main(["judge", str(tmp_path), "--strict"]) == 5
    assert "strict: package as delivered: answers_different 1 (limit 0)" in capsys.readouterr().out
