"""The GPU check where there is no GPU, and its comparison and timing with ONNX Runtime's processor kernels as a runner."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from parity_tests import gpu_check
from parity_tests.check.package_questions import StandInTokenizer, questions
from parity_tests.cli import main
from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.gpu_check import CALLS, ENGINES, NO_DEVICE, NOT_RUN, RUNNERS
from parity_tests.judging.probes import ALWAYS
from parity_tests.reference.checkpoint_side import open_checkpoint, reference
from runtime_py.backends.records import ONNX
from runtime_py.errors import ExitCode
from runtime_py.generation.session import Limits

CPU_RUNNER = {"onnxruntime processor": (ONNX, ("CPUExecutionProvider",))}
CASE = GOLDENS / "minicpm-v"


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_device_name", lambda: "")


@pytest.mark.usefixtures("no_device")
def test_without_a_device_every_row_is_not_run(exported: ExportedPackage, tmp_path: Path) -> None:
    package = exported("minicpm-v", "cpu", "fp32")
    arguments = ["--package", str(package), "--reference", str(CASE), "--report-dir", str(tmp_path)]
    assert main(["gpu-check", *arguments]) == ExitCode.ENVIRONMENT
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["device"] == NO_DEVICE
    assert {(row["runner"], row["probe"]) for row in report["rows"]} == {(r, p) for r in RUNNERS for p in ALWAYS}
    assert {(row["runner"], row["call"]) for row in report["times"]} == {(r, c) for r in RUNNERS for c in CALLS}
    for row in (*report["rows"], *report["times"]):
        assert (row["status"], row["reason"]) == (NOT_RUN, NO_DEVICE)
    text = (tmp_path / "gpu_check.md").read_text()
    assert f"| {ENGINES} |  | vision | not run |  |  | {NO_DEVICE} |" in text
    assert "pass" not in text


def test_a_package_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu-check", "--package", str(tmp_path)]) != ExitCode.OK
    assert "has no manifest.json" in capsys.readouterr().err


def test_what_runs_is_compared_and_timed(exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "RUNNERS", {**CPU_RUNNER, "absent": (ONNX, ("NoSuchProvider",))})
    monkeypatch.setattr(gpu_check, "TIMED", 3)
    rows, times = gpu_check._on_device(exported("minicpm-v", "cpu", "fp32"), CASE, "cpu")
    ran = [row for row in rows if row.runner != "absent"]
    assert {row.probe for row in ran} == set(ALWAYS)
    assert {row.status for row in ran} == {"pass"}
    together = [row.probe for row in ran if row.runner == "onnxruntime processor, several at a time"]
    assert together == ["step_logits"] * len({row.question for row in ran})
    assert all(row.max_abs is not None and row.max_abs < 1e-4 for row in ran)
    assert [entry.call for entry in times if entry.status == "measured"] == list(CALLS)
    assert all(entry.median_ms > 0 and entry.eager_ms > 0 for entry in times if entry.median_ms and entry.eager_ms)
    missing = [row for row in rows if row.runner == "absent"]
    assert {row.status for row in missing} == {NOT_RUN}
    assert "NoSuchProvider" in missing[0].reason
    assert gpu_check._exit_code(rows) is ExitCode.ENVIRONMENT


def test_engines_that_a_package_does_not_hold_are_not_run(
    exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "RUNNERS", {ENGINES: RUNNERS[ENGINES]})
    rows, times = gpu_check._on_device(exported("minicpm-v", "cpu", "fp32"), CASE, "cpu")
    assert {(row.status, row.reason) for row in rows} == {(NOT_RUN, "the package holds no TensorRT engines")}
    assert {entry.status for entry in times} == {NOT_RUN}


def test_a_step_of_a_routed_decoder_is_timed_with_the_inputs_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """CogVLM2's decoder is told which rows are the picture's; a step has one row, and none of those."""
    monkeypatch.setattr(gpu_check, "TIMED", 1)
    checkpoint = open_checkpoint(GOLDENS / "cogvlm2")
    limits = Limits(context=256, prefill_chunk=256)
    processor = checkpoint.processor(StandInTokenizer(checkpoint.spec.embed.vocabulary, ()))
    shown = next(question for question in questions(processor, 3, limits.context, 2) if question.pictures)
    backend = reference(checkpoint.spec, checkpoint.weights)
    calls = gpu_check.recorded_calls(backend, processor, limits, shown)
    assert set(calls) == set(CALLS)
    assert calls[gpu_check.PREFILL]["inputs_embeds"].shape[1] > 1 == calls[gpu_check.DECODE]["inputs_embeds"].shape[1]
    assert set(calls[gpu_check.DECODE]) == set(calls[gpu_check.PREFILL])
    assert set(gpu_check.time_calls(backend, calls)) == set(CALLS)


def test_another_model_fails(exported: ExportedPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(gpu_check, "RUNNERS", CPU_RUNNER)
    monkeypatch.setattr(gpu_check, "TIMED", 1)
    other = Path(shutil.copytree(CASE, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["vpm.norm.weight"] = weights["vpm.norm.weight"] * 1.05
    save_file(weights, other / "model.safetensors")
    rows, _ = gpu_check._on_device(exported("minicpm-v", "cpu", "fp32"), other, "cpu")
    assert next(row.probe for row in rows if row.status == "fail") == "vision"
    assert gpu_check._exit_code(rows) is ExitCode.PARITY_FAILED


def test_engines_that_ran_within_tolerance_are_the_only_success() -> None:
    row = gpu_check.Row(ENGINES, "wide", "vision", "pass", 0.0, 1.0)
    skipped = gpu_check._rows_not_run("onnxruntime CUDA", "not installed")
    assert gpu_check._exit_code([row, *skipped]) is ExitCode.OK
    assert gpu_check._exit_code(skipped) is ExitCode.ENVIRONMENT
