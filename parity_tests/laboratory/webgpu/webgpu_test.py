"""The WebGPU rung on the real provider where it starts, and on the processor's in its place everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from parity_tests.conftest import ExportedPackage
from parity_tests.laboratory.webgpu import command, kernels, written_kernel
from parity_tests.laboratory.webgpu.kernels import Checked, Stage, check, placement
from runtime_py.backends import decompose, ort_stages, webgpu
from runtime_py.backends.attention_trial import trials
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION
from runtime_py.errors import ExitCode, MachineError

CPU = "CPUExecutionProvider"
FAMILIES = ("minicpm-v", "xverse-v", "omnilmm-12b", "cogvlm2", "wemm", "awaker2.5-vl", "qwen2-vl", "minicpm-llama3-v")


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES)
def test_every_graph_on_the_provider(case: str, exported: ExportedPackage) -> None:
    try:
        webgpu.webgpu(onnxruntime)
    except MachineError as error:
        pytest.skip(f"not run: {error.what}")
    checked = check(exported(case, "cpu", "fp32"))
    assert checked.passed, checked


@pytest.mark.parametrize(("lanes", "cleared"), [(4, False), (4, True), (8, False), (16, False), (32, False)])
def test_each_fault_of_the_providers_kernel_fails_the_trial(lanes: int, cleared: bool) -> None:
    trial = trials()[0]
    assert trial.error(lambda _model, feeds: written_kernel.attention(feeds, lanes, cleared)) > 0.01 > trial.limit


@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_the_kernel_with_neither_fault_is_attention(lanes: int) -> None:
    assert trials()[0].error(lambda _model, feeds: written_kernel.attention(feeds, lanes, cleared=True)) < 1e-6


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The processor's provider in the place of WebGPU's, its attention called wrong, so that it is decomposed."""
    for module, name in ((webgpu, "PROVIDER"), (ort_stages, "WEBGPU"), (kernels, "PROVIDER")):
        monkeypatch.setattr(module, name, CPU)
    monkeypatch.setattr(webgpu, "_plugin_device", lambda _ort: None)
    monkeypatch.setattr(webgpu.WebGpu, "attention_is_right", False)
    webgpu.webgpu.cache_clear()
    yield
    webgpu.webgpu.cache_clear()


@pytest.mark.usefixtures("stand_in")
def test_graphs_with_decomposed_attention_are_the_same(exported: ExportedPackage) -> None:
    checked = check(exported("minicpm-v", "cpu", "fp32"))
    assert checked.passed, checked
    assert set(checked.stages) == set(STAGES)
    figures = [stage.worst for stage in checked.stages.values()]
    assert all(figure is not None and figure < 1e-5 for figure in figures)
    assert all(stage.on_gpu and not stage.elsewhere for stage in checked.stages.values())


@pytest.mark.usefixtures("stand_in")
def test_a_wrong_kernel_does_not_pass(exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that see what lies behind them: the decoder's prompt is wrong, and nothing before it."""
    monkeypatch.setattr(decompose, "HIDDEN", 0.0)
    checked = check(exported("minicpm-v", "cpu", "fp32"))
    assert not checked.passed
    assert {name for name, stage in checked.stages.items() if not stage.passed} == {DECODER}


@pytest.mark.usefixtures("stand_in")
def test_a_kernel_that_breaks_is_a_failure_with_its_words(
    exported: ExportedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("Program Cast requires f16\nand more")

    monkeypatch.setattr(webgpu.WebGpu, "session_of", broken)
    checked = check(exported("minicpm-v", "cpu", "fp32"))
    assert (checked.passed, checked.not_run) == (False, "Program Cast requires f16")


def test_a_graph_that_stayed_on_the_processor_does_not_pass() -> None:
    whole = {stage: Stage(1e-6, True, 3, {}) for stage in (VISION, CONNECTOR, EMBED, DECODER)}
    assert Checked("p", whole, True).passed
    assert not Checked("p", {**whole, CONNECTOR: Stage(0.0, True, 0, {"FusedMatMul": 2})}, True).passed
    assert not Checked("p", whole, False).passed


def test_nodes_are_counted_once_by_where_they_ran(tmp_path: Path) -> None:
    def event(name: str, operator: str, provider: str) -> dict[str, Any]:
        return {"cat": "Node", "name": name, "args": {"op_name": operator, "provider": provider}}

    events = [event("a", "MatMul", webgpu.PROVIDER)] * 2
    events += [event("b", "Sin", CPU), event("c", "Sin", CPU), {"cat": "Session", "name": "run", "args": {}}]
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps(events))
    on_gpu, elsewhere = placement(profile)
    assert (on_gpu, dict(elsewhere)) == (1, {"Sin": 2})


def test_without_the_provider_nothing_ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(_ort: object) -> object:
        raise MachineError("no provider", "one", "install it")

    monkeypatch.setattr(webgpu, "webgpu", absent)
    assert command.main([]) == ExitCode.ENVIRONMENT
    said = capsys.readouterr().out
    assert said.startswith("not run: no provider")
    assert "pass" not in said


def test_the_table_names_every_stage_and_what_was_left_out() -> None:
    stages = {stage: Stage(1.5e-6, True, 10, {"Sin": 2}) for stage in STAGES}
    broken = Checked("other", {}, False, "Program Cast requires f16")
    text = command.table([Checked("one", stages, True), broken])
    assert "| one | 1.5e-06 (10 + 2) | 1.5e-06 (10 + 2) | 1.5e-06 (10 + 2) | 1.5e-06 (10 + 2) | equal | pass |" in text
    assert "| other | not run | not run | not run | not run |  | FAIL: Program Cast requires f16 |" in text
    assert "On the processor: Sin." in text


def test_a_golden_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    provider = SimpleNamespace(half=True, attention_errors={}, attention_is_right=True, run=lambda *_: 1 / 0)
    monkeypatch.setattr(webgpu, "webgpu", lambda _ort: provider)
    assert command.main(["--case", "nobody"]) == ExitCode.USAGE
    assert "no golden nobody" in capsys.readouterr().err
