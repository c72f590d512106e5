"""The speed program rehearsed on the processor: its calls agree between PyTorch and a package before they are timed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from parity_tests.conftest import GOLDENS, ExportedPackage
from parity_tests.laboratory import gpu_timing
from parity_tests.laboratory.gpu_calls import calls_of
from parity_tests.laboratory.gpu_speed import main
from parity_tests.laboratory.gpu_timing import PLACES
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.errors import ExitCode

CASE = GOLDENS / "minicpm-v"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_timing, "WARM", 1)
    monkeypatch.setattr(gpu_timing, "TIMED", 2)
    monkeypatch.setitem(PLACES, "cpu", replace(PLACES["cpu"], copied=1 << 16, side=32))


@pytest.mark.usefixtures("quick")
def test_every_call_is_timed_and_agrees_with_eager(exported: ExportedPackage, tmp_path: Path) -> None:
    package = exported("minicpm-v", "cpu", "fp32")
    wanted = ["--device", "cpu", "--reference", str(CASE), "--package", str(package), "--without-compiled"]
    assert main([*wanted, "--prefill", "20", "--contexts", "8,12", "--json-file", str(tmp_path / "speed.json")]) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())
    runners = {"PyTorch eager float32", f"{package.name}, CPUExecutionProvider"}
    calls = {"vision encoder", "connector", "decoder prefill", "decoder step at 8", "decoder step at 12"}
    assert {(row["runner"], row["call"]) for row in figures["figures"]} == {(r, c) for r in runners for c in calls}
    for row in figures["figures"]:
        assert row["median_ms"] > 0 and row["floor_ms"] > 0, row
        assert row["cosine"] > 1 - 1e-6, row


def test_a_step_continues_what_fills_its_cache() -> None:
    checkpoint = open_checkpoint(CASE)
    step = calls_of(checkpoint, 4, (6,), torch.float32, "cpu")[-1]
    backend = TorchBackend(checkpoint.spec, checkpoint.weights)
    whole = {name: np.concatenate([step.before[name], step.inputs[name]], axis=1) for name in step.inputs}
    expected = backend.forward(backend.start(7), whole, np.array([-1]))
    with torch.no_grad():
        logits, _ = backend.build("decoder")(**step.on_device(torch.float32, "cpu"))
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
    spec = checkpoint.spec.decoder
    assert step.cache_bytes == 2 * spec.layers * spec.kv_heads * spec.head_dim * 6 * 2
    assert step.operations > 2 * spec.vocabulary * spec.hidden


def test_routed_decoders_and_a_missing_gpu_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--device", "cpu", "--reference", str(GOLDENS / "cogvlm2")]) == ExitCode.USAGE
    assert "routed by its tokens" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--reference", str(CASE)]) == ExitCode.ENVIRONMENT
    assert "no CUDA device" in capsys.readouterr().err
