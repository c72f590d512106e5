"""Eight-bit inputs that move a question far: shown on a reference that rounds as the kernels do, or a failure."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from parity_tests import thresholds
from parity_tests.backends.onnx import OnnxExaminer
from parity_tests.check import rounded_inputs
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.rounded_inputs import RoundedQuestion, _held_to
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import ROUNDED_INPUTS, Comparison, Measurement
from parity_tests.judging.standards import Limit, Standard
from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.reference.arithmetic import PLAIN
from parity_tests.report.html_report import html
from parity_tests.report.markdown_report import markdown

CASE = "minicpm-v"
OPTIONS = CheckOptions(steps=3, only="wide")
LOGITS = (Kind.LOGITS, Kind.PROMPT_LOGITS, Kind.PICTURE_LOGITS)


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow kernels an eighth of the nats that their roundings cost this model: every question is one that is moved far."""
    limits = dict.fromkeys(LOGITS, (Limit("kl_mean", 1e-5, "of this test"),))
    kernels = {**thresholds.DEFAULT[Standard.KERNELS_INT8], **limits}
    monkeypatch.setattr(thresholds, "DEFAULT", {**thresholds.DEFAULT, Standard.KERNELS_INT8: kernels})


@pytest.mark.usefixtures("tight")
def test_what_rounding_alone_does_is_no_fault_of_the_kernels(exported: ExportedPackage):
    judged = check(exported(CASE, "cpu", "int4"), GOLDENS / CASE, OPTIONS).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")
    parts = {(row.comparison.name, row.comparison.standard): row for row in judged.comparisons}
    moved = parts["kernels", Standard.MOVED].comparison.measurements
    assert {row.kind for row in moved} == set(LOGITS)
    assert all(row.metrics["kl_mean"] > 1e-5 and 0.3 < row.metrics["moved_ratio"] < 3 for row in moved)
    alone = {row.probe: row.metrics for row in parts[ROUNDED_INPUTS, Standard.INT4_LOSS].comparison.measurements}
    assert all(0.3 < row.metrics["kl_mean"] / alone[row.probe]["kl_mean"] < 3 for row in moved)
    ordinary = parts["kernels", Standard.KERNELS_INT8].comparison.measurements
    assert {row.probe for row in ordinary}.isdisjoint(row.probe for row in moved)
    for page in (html(judged), markdown(judged)):
        assert ROUNDED_INPUTS in page
        assert "moved_ratio" in page


@pytest.mark.usefixtures("tight")
def test_what_rounding_does_not_explain_stays_a_failure(exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(OnnxExaminer, "kernel_arithmetic", lambda *given: PLAIN)
    judged = check(exported(CASE, "cpu", "int4"), GOLDENS / CASE, OPTIONS).judgement
    assert judged.first_failure.startswith("kernels: wide ")
    assert "kl_mean" in judged.first_failure
    assert {row.comparison.name for row in judged.comparisons} == {"implementation", "kernels", ROUNDED_INPUTS, "loss"}
    assert all(row.comparison.standard is not Standard.MOVED for row in judged.comparisons)


@pytest.mark.parametrize("values", [(math.nan, 0.2), (0.2, math.nan)], ids=["first", "second"])
def test_a_figure_that_is_no_number_is_not_excused(values: tuple[float, float]):
    limits = (Limit("kl_mean", 0.03, ""), Limit("kl_max", 0.1, ""))
    alone = Measurement("step_logits", "decoder", Kind.LOGITS, (1,), {"kl_mean": 0.2, "kl_max": 0.2})
    said = replace(alone, metrics=dict(zip(("kl_mean", "kl_max"), values, strict=True)))
    (limit,) = thresholds.limits(Standard.MOVED, Kind.LOGITS)
    assert limit.holds(_held_to(alone, limits, alone).metrics)
    assert not limit.holds(_held_to(said, limits, alone).metrics)


@pytest.mark.parametrize("further", ["kl_mean", "kl_max", "worst_row_cosine"])
def test_what_rounding_explains_of_one_figure_excuses_no_other(further: str):
    limits = (Limit("kl_mean", 0.03, ""), Limit("kl_max", 0.1, ""), Limit("worst_row_cosine", 0.99, ""))
    alone = {"kl_mean": 0.2, "kl_max": 0.2, "worst_row_cosine": 0.98}
    figures = {name: 1 - 5 * (1 - value) if name == "worst_row_cosine" else 5 * value for name, value in alone.items()}
    row = Measurement("step_logits", "decoder", Kind.LOGITS, (1,), alone)
    said = replace(row, metrics={**alone, further: figures[further]})
    assert _held_to(row, limits, row).metrics["moved_ratio"] == pytest.approx(1)
    assert _held_to(said, limits, row).metrics["moved_ratio"] == pytest.approx(5)
    assert _held_to(said, limits, None).metrics["moved_ratio"] == math.inf


def compared(standard: Standard, *rows: Measurement) -> Comparison:
    return Comparison("kernels", standard, "", "", rows)


def row(divergence: float, stage: str = "decoder", probe: str = "step_logits", problem: str = "") -> Measurement:
    figures = {"relative_max": 0.1, "worst_row_cosine": 0.99, "mean_row_cosine": 0.999, "kl_mean": 0.01}
    figures["flipped_relative"] = 0.0
    return Measurement(probe, stage, Kind.LOGITS, (1,), {**figures, "kl_max": divergence}, problem)


SOUND = Measurement("vision", "vision_encoder", Kind.EXACT, (1,), {"mismatches": 0.0})
WRONG = replace(SOUND, metrics={"mismatches": 1.0})


@pytest.mark.parametrize(
    ("kernels", "copies", "alone", "said"),
    [
        ((row(0.1),), (SOUND,), 0.2, ["kernels-int8"]),
        ((row(0.3), SOUND), (SOUND, SOUND), 0.2, ["kernels-int8", "moved-by-rounding", "int4-loss"]),
        ((row(0.3),), (SOUND,), 0.05, ["kernels-int8", "int4-loss"]),
        ((row(0.3),), (SOUND,), None, ["kernels-int8"]),
        ((row(0.3),), (SOUND, WRONG), 0.2, ["kernels-int8"]),
        ((row(0.3), WRONG), (SOUND,), 0.2, ["kernels-int8"]),
        ((row(0.3), row(0.3, problem="another shape", probe="prefill_logits")), (SOUND,), 0.2, ["kernels-int8"]),
    ],
    ids=["within", "moved", "moved too far", "nobody knows", "a copy is wrong", "another stage is wrong", "not compared"],
)
def test_a_question_is_excused_only_where_rounding_is_shown_to_be_all(
    kernels: tuple[Measurement, ...],
    copies: tuple[Measurement, ...],
    alone: float | None,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    checkpoint: Any = SimpleNamespace(spec=SimpleNamespace(family=CASE))
    asked = RoundedQuestion(checkpoint, *[checkpoint] * 8)
    monkeypatch.setattr(RoundedQuestion, "_rounded", lambda self: None if alone is None else SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(rounded_inputs, "compare_recordings", lambda inside, rounded: (row(alone or 0.0),))
    given = compared(Standard.KERNELS_INT8, *kernels)
    told = asked.settled(given, [compared(Standard.STORED_FLOAT32, copy) for copy in copies])
    assert [str(comparison.standard) for comparison in told] == said
    if len(said) == 3:
        assert [[each.probe for each in comparison.measurements] for comparison in told[:2]] == [["vision"], ["step_logits"]]
    else:
        assert told[0] is given


@pytest.mark.usefixtures("tight")
def test_a_package_whose_copy_is_wrong_is_not_asked_again(copied: ExportedPackage):
    package = copied(CASE, "cpu", "int4")
    tamper(package, "decoder", "layers.1.mlp.down.weight_scales", lambda scales: scales * 1.05)
    judged = check(package, GOLDENS / CASE, OPTIONS).judgement
    assert judged.first_failure.startswith("implementation")
    assert all(row.comparison.name != ROUNDED_INPUTS for row in judged.comparisons)
