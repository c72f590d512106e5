"""Verdicts: what passes, what fails, and that a stored run is judged like a fresh one."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_tests import thresholds
from parity_tests.judging import results
from parity_tests.judging.compare import compare_arrays, compare_recordings
from parity_tests.judging.judge import Verdict, judge
from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind
from parity_tests.judging.own_limits import read_limits
from parity_tests.judging.probes import Recording
from parity_tests.judging.results import Comparison, Divergence, Measurement, Run
from parity_tests.judging.run_details import Details, StageError
from parity_tests.judging.standards import Limit, Standard
from runtime_py.errors import UsageError


def run_of(*measurements: Measurement, standard: Standard = Standard.GOLDEN, family: str = "minicpm-v") -> Run:
    comparison = Comparison("golden", standard, "arrays", "ort", measurements)
    return Run("case", family, "1.0", "cpu", "fp32", "ort", (comparison,), environment={"python": "3"})


def logits(error: float, family: str = "minicpm-v") -> Run:
    expected = np.linspace(-7, 7, 60).reshape(1, 3, 20)
    actual = expected.copy()
    actual[0, 1, 4] += error
    return run_of(compare_arrays("prefill_logits", expected, actual), family=family)


def test_just_inside_passes_and_just_outside_fails():
    assert judge(logits(0.9e-4)).verdict is Verdict.PASS
    outside = judge(logits(1.1e-4))
    assert outside.verdict is Verdict.FAIL
    assert "prefill_logits" in outside.first_failure
    assert "stage decoder" in outside.first_failure
    assert "limit 0.0001" in outside.first_failure


def test_a_family_may_have_its_own_limit():
    assert judge(logits(1.5e-4, family="wemm")).verdict is Verdict.PASS
    assert judge(logits(2.5e-4, family="wemm")).verdict is Verdict.FAIL


@pytest.mark.parametrize("standard", [s for s in Standard if s is not Standard.INT4_LOSS])
def test_a_nan_fails_under_every_standard(standard: Standard):
    expected = np.ones((1, 2, 4))
    actual = expected.copy()
    actual[0, 0, 0] = np.nan
    for name in ("vision", "connector", "inputs_embeds", "prefill_logits"):
        assert judge(run_of(compare_arrays(name, expected, actual), standard=standard)).verdict is Verdict.FAIL


@pytest.mark.parametrize("standard", list(Standard))
def test_zeros_instead_of_values_fail_under_every_standard(standard: Standard):
    expected = np.random.default_rng(0).normal(size=(1, 6, 32))
    for name in ("vision", "connector", "inputs_embeds", "prefill_logits", "step_logits"):
        judged = judge(run_of(compare_arrays(name, expected, np.zeros_like(expected)), standard=standard))
        assert judged.verdict is Verdict.FAIL, (standard, name)


def test_another_shape_and_a_missing_required_array_fail():
    expected = np.zeros((1, 2, 4))
    assert judge(run_of(compare_arrays("vision", expected, np.zeros((2, 4))))).verdict is Verdict.FAIL
    assert judge(run_of(compare_arrays("vision", expected, None))).verdict is Verdict.FAIL


@pytest.mark.parametrize("actual", [np.array([[3, 1, 2]]), None])
def test_what_cannot_be_compared_fails_under_a_standard_without_limits_too(actual: np.ndarray | None):
    measured = compare_arrays("greedy_ids", np.array([[3, 1]]), actual)
    assert thresholds.limits(Standard.INT4_LOSS, Kind.TOKENS) == ()
    judged = judge(run_of(measured, standard=Standard.INT4_LOSS))
    assert judged.verdict is Verdict.FAIL
    assert judged.first_failure.endswith(measured.problem or measured.not_probed)


def test_an_array_that_nobody_looks_at_is_no_failure_unless_it_is_all_there_is():
    other = Measurement("conv_out", "", Kind.FEATURES, (1,), not_probed="no probe of that name")
    good = compare_arrays("vision", np.ones((1, 2)), np.ones((1, 2)))
    assert judge(run_of(good, other)).verdict is Verdict.PASS
    assert judge(run_of(other)).verdict is Verdict.NOT_RUN


def test_a_wrong_token_fails_but_a_tie_does_not():
    tokens = np.array([[3, 1]])
    sure, tie = np.array([[[0.0, 0, 0, 9], [0, 8, 0, 7.9]]]), np.array([[[0.0, 0, 0, 9], [0, 8, 0, 7.9999]]])
    other = np.array([[3, 3]])
    for step_logits, verdict in ((sure, Verdict.FAIL), (tie, Verdict.PASS)):
        measured = compare_arrays("greedy_ids", tokens, other, step_logits=step_logits)
        assert judge(run_of(measured, standard=Standard.FP32)).verdict is verdict
        assert judge(run_of(measured, standard=Standard.GOLDEN)).verdict is Verdict.FAIL


def test_the_first_failure_is_the_first_in_pipeline_order_and_names_the_block():
    one, two = np.ones((1, 2, 4)), np.full((1, 2, 4), 2.0)
    run = run_of(
        compare_arrays("vision", one, one), compare_arrays("connector", one, two), compare_arrays("vision", one, two)
    )
    judged = judge(run.with_divergence(Divergence("connector", "ln_kv")))
    assert judged.first_failure.startswith("golden: connector (stage connector, block ln_kv)")


@pytest.mark.parametrize("error", [1.0, math.nan])
def test_the_place_of_a_failure_is_the_first_stored_stage_and_block_beyond_the_limits(error: float):
    stages = (
        StageError("loss", "vision", 0.5, (("blocks.0", 0.5),)),
        StageError("kernels", "vision", 0.5, (("blocks.0", 0.5),)),
        StageError("golden", "vision", 1e-7, (("blocks.0", 1e-7),)),
        StageError("golden", "connector", error, (("resampler.0", 1e-7), ("resampler.1", error), ("resampler.2", error))),
        StageError("golden", "decoder", error, (("layers.0", error),)),
    )
    one, two = np.ones((1, 2, 4)), np.full((1, 2, 4), 2.0)
    run = run_of(compare_arrays("connector", one, two), standard=Standard.FP32)
    loss = Comparison("loss", Standard.INT4_LOSS, "full", "stored", ())
    run = replace(run, comparisons=(loss, *run.comparisons), details=Details(stages=stages))
    assert judge(run).first_failure.startswith("golden: connector (stage connector, block resampler.1)")
    within = replace(run, details=Details(stages=stages[:3]))
    assert judge(within).run.divergence is None
    assert judge(within).first_failure.startswith("golden: connector (stage connector)")
    absolute = run.comparisons[1]
    run = replace(run, comparisons=(loss, replace(absolute, standard=Standard.GOLDEN)))
    assert judge(run).run.divergence is None, "a stored error is relative, and this limit is not"


def test_a_stored_run_comes_back_equal_and_is_judged_alike(tmp_path: Path):
    run = replace(
        logits(math.nan),
        divergence=Divergence("decoder", "layers.1", (("layers.0", 0.0), ("layers.1", math.inf)), "note"),
        not_run=(("engines", "no GPU"),),
        accuracy={"task": 0.5},
    )
    path = tmp_path / "run.json"
    path.write_text(json.dumps(results.to_json(run), allow_nan=False))
    again = results.read(path)
    assert again == run
    assert judge(again).verdict is judge(run).verdict is Verdict.FAIL


def test_no_run_is_refused(tmp_path: Path):
    path = tmp_path / "run.json"
    for text in ("{}", "[]", '{"schema": 99}', "no json"):
        path.write_text(text)
        with pytest.raises(UsageError):
            results.read(path)


def test_limits_from_a_file_go_first(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text('{"golden-fp32": {"logits": {"max_abs": 1e-6}}}')
    table = read_limits(path)
    assert judge(logits(5e-6), table).verdict is Verdict.FAIL
    assert judge(logits(5e-6)).verdict is Verdict.PASS
    for text in ('{"fp99": {}}', '{"fp32": {"logits": {"max_obs": 1}}}', '{"fp32": {"logs": {}}}', "[1]", "{"):
        path.write_text(text)
        with pytest.raises(UsageError):
            read_limits(path)


@pytest.mark.parametrize("former", ["golden-fp32-gate-crossing", "gate-crossing"])
def test_a_file_of_limits_may_have_the_former_name_of_a_standard(tmp_path: Path, former: str):
    (tmp_path / "mine.toml").write_text(f"[{former}.logits]\nmax_abs = 1\n", encoding="utf-8")
    (standard,) = read_limits(tmp_path / "mine.toml")
    assert standard.value == former.replace("gate-crossing", "rounding-flip")


def test_a_file_s_logits_hold_for_the_text_of_a_prompt_unless_it_names_that():
    mine = {Standard.FP32: {Kind.LOGITS: (Limit("kl_max", 1.0, "mine, for this test"),)}}
    bounds = {limit.metric: limit.bound for limit in thresholds.limits(Standard.FP32, Kind.PROMPT_LOGITS, table=mine)}
    assert bounds["kl_max"] == 1.0
    mine[Standard.FP32][Kind.PROMPT_LOGITS] = ()
    assert thresholds.limits(Standard.FP32, Kind.PROMPT_LOGITS, table=mine) == thresholds.limits(
        Standard.FP32, Kind.PROMPT_LOGITS
    )


def test_pictures_and_text_of_a_prompt_are_measured_apart_and_only_the_rows_that_are_read_by_their_worst():
    rng = np.random.default_rng(0)
    logits, pictures = rng.normal(size=(1, 40, 30)) * 4, np.arange(40) < 20
    steps, ids = logits[:, -1:], np.argmax(logits[:, -1:], axis=-1)
    arrays = {"prefill_logits": logits, "step_logits": steps, "greedy_ids": ids}
    reference = Recording("", arrays=arrays, picture_rows=pictures, greedy_logits=steps)

    def verdicts(row: int | None) -> dict[str, Verdict]:
        other = logits.copy()
        if row is not None:
            other[0, row] += rng.normal(size=30) * 0.4
        said = {**arrays, "prefill_logits": other, "step_logits": other[:, -1:]}
        rows = compare_recordings(reference, Recording("", arrays=said, greedy_logits=steps))
        (judged,) = judge(run_of(*rows, standard=Standard.STORED_FLOAT16)).comparisons
        return {probe.measurement.probe: probe.verdict for probe in judged.probes}

    assert set(verdicts(None).values()) == {Verdict.PASS}
    assert list(verdicts(None)) == ["picture_logits", "prefill_logits", "step_logits", "greedy_ids"]
    assert set(verdicts(3).values()) == {Verdict.PASS}, "a picture row that nobody reads"
    assert verdicts(39)["step_logits"] is Verdict.FAIL, "the row that the answer begins with"


def test_every_limit_has_a_reason_and_a_known_metric():
    tables = [thresholds.DEFAULT, *thresholds.FAMILIES.values()]
    for limit in (limit for table in tables for kinds in table.values() for row in kinds.values() for limit in row):
        assert limit.metric in HIGHER_IS_BETTER
        assert len(limit.reason) > 10
    assert set(thresholds.DEFAULT) == set(Standard)
    assert all(set(kinds) == set(Kind) for kinds in thresholds.DEFAULT.values())


def test_a_tie_is_looked_for_along_the_reference_s_own_answer():
    """Fed foreign tokens, the step logits belong to another text than the greedy answer."""
    own = np.array([[[0.0, 9, 0], [5.0, 4.9999, 0]]])
    forced = np.array([[[0.0, 9, 0], [9.0, 0, 0]]])
    reference = Recording("", arrays={"step_logits": forced, "greedy_ids": np.array([[1, 0]])}, greedy_logits=own)
    candidate = Recording("", arrays={"step_logits": forced, "greedy_ids": np.array([[1, 1]])}, greedy_logits=own)
    rows = compare_recordings(reference, candidate)
    assert judge(run_of(*rows, standard=Standard.FP32)).verdict is Verdict.PASS
    reference.greedy_logits = forced
    assert judge(run_of(*compare_recordings(reference, candidate), standard=Standard.FP32)).verdict is Verdict.FAIL


@pytest.mark.parametrize("name", ["run.json", "limits.json", "limits.toml"])
def test_deep_files_and_pipes_are_refused(tmp_path: Path, name: str) -> None:
    read = results.read if name == "run.json" else read_limits
    (tmp_path / name).write_bytes((b"a = " if name.endswith("toml") else b"") + b"[" * 100_000)
    with pytest.raises(UsageError, match=name):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UsageError, match="is no file"):
        read(tmp_path / name)
