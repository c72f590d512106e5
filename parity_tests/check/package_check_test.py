"""``--package``: against a checkpoint, against the recorded sample, and against the wrong checkpoint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from export.package.sample_questions import PROMPTS, drawn_pictures
from parity_tests.check import recorded_sample
from parity_tests.check.package_check import CheckOptions, check
from parity_tests.check.package_questions import StandInTokenizer, questions
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.judging.compare import compare_arrays
from parity_tests.judging.judge import Verdict, judge_comparison
from parity_tests.judging.probes import Question, Recording
from parity_tests.judging.results import Comparison
from parity_tests.judging.standards import Standard
from parity_tests.laboratory.onnx_tamper import tamper
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.streamed import full_peak, predicted_peak
from parity_tests.report.html_report import html
from runtime_py.errors import PackageError, UsageError


def put_sample(package: Path, sample: object) -> None:
    path = package / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["verification"] = json.loads(json.dumps({"verdict": "pass", "sample": sample}))
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_good_package_passes_with_and_without_its_checkpoint(copied: ExportedPackage, precision: str):
    package = copied("minicpm-v", "cpu", precision)
    result = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=4))
    assert (result.verdict, result.first_failure) == ("pass", None)
    asked = {c.comparison.question for c in result.judgement.comparisons}
    assert asked == {name for name, _, _ in PROMPTS}
    value = result.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["verdict"] == "pass"
    put_sample(package, result.sample)
    again = check(package)
    assert again.verdict == "pass"
    tamper(package, "decoder", "norm.weight", lambda values: values[::-1])
    assert check(package).verdict == "fail"
    assert main(["--package", str(package)]) == 5


@pytest.mark.parametrize(("precision", "stored"), [("fp32", "table.weight"), ("int4", "table.weight_scales")])
def test_a_row_of_the_embedding_that_no_question_reads_is_found(copied: ExportedPackage, precision: str, stored: str):
    package, row = copied("minicpm-v", "cpu", precision), 111  # a mark of slices, which this version has none of

    def twice(values: np.ndarray) -> np.ndarray:
        values[row] *= 2
        return values

    tamper(package, "embed_tokens", stored, twice)
    judged = check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    assert judged.first_failure.startswith("embedding rows: table (stage embed_tokens, block table): relative_max ")
    assert judged.run.divergence is not None and "token 111 is furthest" in judged.run.divergence.note
    assert "embedding rows: against reference" in html(judged)


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_weights_that_end_early_are_a_fault_of_the_package(copied: ExportedPackage, precision: str):
    package = copied("minicpm-v", "cpu", precision)
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    row = next(row for row in manifest["files"] if row["path"].startswith("onnx/embed") and "_data" in row["path"])
    content = (package / row["path"]).read_bytes()[:64]
    (package / row["path"]).write_bytes(content)
    row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(PackageError, match="cannot load"):
        check(package, GOLDENS / "minicpm-v", CheckOptions(steps=2))


def test_int4_is_judged_three_ways_apart(exported: ExportedPackage):
    judged = check(exported("minicpm-v", "cpu", "int4"), GOLDENS / "minicpm-v", CheckOptions(steps=2)).judgement
    names = [c.comparison.name for c in judged.comparisons if c.comparison.question == "wide"]
    assert names == ["implementation", "kernels", "loss"]
    tight = judged.comparisons[0]
    worst = max(p.measurement.metrics.get("relative_max", 0) for p in tight.probes)
    loss = max(p.measurement.metrics.get("relative_max", 0) for p in judged.comparisons[2].probes)
    assert worst < 1e-4
    assert loss > 1e-2


def test_without_a_reference_nothing_is_said_to_pass(exported: ExportedPackage, capsys: pytest.CaptureFixture[str]):
    package = exported("minicpm-v", "cpu", "fp32")
    assert check(package).judgement.verdict is Verdict.NOT_RUN
    assert main(["--package", str(package)]) == 7
    assert "not run: comparison with the reference" in capsys.readouterr().out


def test_another_checkpoint_is_refused(exported: ExportedPackage):
    with pytest.raises(UsageError, match="is not what the package was made from"):
        check(exported("minicpm-v", "cpu", "fp32"), GOLDENS / "minicpm-v-2")


def test_questions_fit_and_are_the_same_every_time():
    processor = open_checkpoint(GOLDENS / "minicpm-v").processor(StandInTokenizer(256, [0, 1, 2, 5, 101, 102, 111, 112]))
    asked = questions(processor, 3, 128, 8)
    assert [question.name for question in asked] == ["wide", "tall", "text"]
    assert len(questions(processor, 1, 128, 8)) == 1
    assert all(int(question.input_ids.max()) < 256 for question in asked)
    with pytest.raises(UsageError):
        questions(processor, 3, 12, 8)
    assert all(np.array_equal(a, b) for a, b in zip(drawn_pictures(), drawn_pictures(), strict=True))


def test_stand_in_text_never_makes_a_reserved_id():
    reserved = [0, 3, 4]
    ids = StandInTokenizer(8, reserved).encode("".join(map(chr, range(32, 400))))
    assert not set(ids) & set(reserved)
    assert set(ids) == {1, 2, 5, 6, 7}


def test_kept_values_are_few_and_spread():
    values = recorded_sample._thin(np.arange(10_000, dtype=np.float32).reshape(100, 100))
    assert len(values["values"]) == recorded_sample.VALUES
    assert values["values"][0] == 0
    assert values["values"][-1] == 9999


def test_a_tie_of_the_recorded_sample_is_as_close_as_it_was_to_the_reference():
    logits = 5 + 2 * np.random.default_rng(0).normal(size=(1, 3, 500))
    ids = logits.argmax(-1)
    said = Recording("wide", arrays={"step_logits": logits, "greedy_ids": ids}, fed=ids, greedy_logits=logits)
    sample = recorded_sample.keep(Question("wide", (), np.zeros((1, 4), np.int64)), said)
    other = ids.copy()
    other[0, 1] = np.argsort(logits[0, 1])[-2]
    whole, kept = (
        compare_arrays("greedy_ids", ids, other, step_logits=rows).metrics
        for rows in (logits, recorded_sample.step_logits(sample))
    )
    assert kept["split_margin"] == pytest.approx(whole["split_margin"])
    assert kept["split_relative"] == pytest.approx(whole["split_relative"], rel=0.3)


def test_what_a_recorded_sample_has_and_a_package_has_not_or_in_another_shape_fails():
    logits = np.random.default_rng(0).normal(size=(1, 3, 50))
    whole = Recording("wide", arrays={"prefill_logits": logits, "step_logits": logits, "greedy_ids": logits.argmax(-1)})
    whole.fed, whole.greedy_logits = whole.arrays["greedy_ids"], logits
    sample = recorded_sample.keep(Question("wide", (), np.zeros((1, 4), np.int64)), whole)
    assert list(recorded_sample.fed(sample)[0]) == list(logits.argmax(-1)[0])

    def failing(**changes: np.ndarray | None) -> list[str]:
        arrays = {name: array for name, array in {**whole.arrays, **changes}.items() if array is not None}
        rows = recorded_sample.compare(sample, Recording("wide", arrays=arrays))
        compared = Comparison("sample", Standard.FP32, "", "", rows)
        return [
            row.measurement.probe for row in judge_comparison(compared, "minicpm-v").probes if row.verdict is Verdict.FAIL
        ]

    assert failing() == []
    assert failing(prefill_logits=None) == ["prefill_logits"]
    assert failing(step_logits=logits[:, :2]) == ["step_logits"]
    assert failing(prefill_logits=logits * 1.01) == ["prefill_logits"]
    assert failing(greedy_ids=None) == ["greedy_ids"]


def test_the_streamed_reference_of_the_published_model_is_predicted_under_2_gb():
    from export.families.minicpm_v.family import FAMILY
    from export.source.tensor_source import EmptySource

    spec = FAMILY.spec(FAMILY.published_config("1.0", "full"), EmptySource())
    assert predicted_peak(spec, tokens=160) < 2 << 30
    assert full_peak(spec) > 12 << 30
