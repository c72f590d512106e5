"""A comparison as jobs: their order, their rows on disk, and one real comparison that is then kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.command.compare_cli import parser, request_of
from calibrate.evaluation import comparison_jobs
from calibrate.evaluation.compare_table import Row, long_table
from calibrate.evaluation.comparison import ComparisonRequest
from calibrate.evaluation.comparison_jobs import FORM, jobs
from calibrate.evaluation.score import Score
from calibrate.samples import machine
from calibrate.statistics import passes
from export.cluster.jobs import outcomes
from export.cluster.product import here
from export.cluster.results import Results
from export.cluster.worker import carry_out
from runtime_py.errors import MachineError


def request(*given: str) -> ComparisonRequest:
    return request_of(parser("compare").parse_args(["--model", "minicpm-v", *given]))


def test_jobs_are_in_the_order_of_the_table_and_each_has_a_name_of_its_own() -> None:
    listed = jobs(request("--on", "cpu:32", "--on", "android", "--methods", "gptq,gptq:text"))
    assert [job.name for job in listed] == [
        "compare.full",
        *("compare.cpu-32.plain", "compare.cpu-32.gptq", "compare.cpu-32.gptq-text"),
        *("compare.android.plain", "compare.android.gptq", "compare.android.gptq-text"),
    ]


def test_rows_are_on_disk_what_they_were() -> None:
    score = Score(cosine=0.5, worst_cosine=0.25, kl=0.1, accuracy=None, changed=3, agreement=0.9)
    rows = [Row("cpu:32 (grid)", "gptq", "", score, 1.5, 7, ("decoder.layers.0",), 1.25, 4.5, 99)]
    assert FORM.from_json(json.loads(json.dumps(FORM.to_json(rows)))) == rows


def test_files_of_the_checkpoint_decide_too(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("words")
    asked = replace(request("--on", "cpu:32"), text=(tmp_path / "held_out.txt",))
    before, *_ = jobs(asked, stamped=True)
    assert any(name.endswith("model.safetensors") for name in before.beside), sorted(before.beside)
    (tmp_path / "held_out.txt").write_text("other words")
    results = Results(tmp_path, FORM)
    assert results.key(before) != results.key(jobs(asked, stamped=True)[0])


def test_what_is_installed_decides_where_the_samples_are_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request("--on", "cpu:32", "--methods", "mse-clip,mse-clip:machine")
    assert not any(job.given.machine for job in jobs(asked)), "nothing is kept: nothing is looked at"
    results = Results(tmp_path, FORM)
    before = jobs(asked, stamped=True)
    assert [bool(job.given.machine) for job in before] == [False, False, False, True]
    keys = [results.key(job) for job in before]
    monkeypatch.setattr(machine, "passages", lambda: (machine.Passage("What is new?", "A text more."),))
    after = [results.key(job) for job in jobs(asked, stamped=True)]
    assert keys[:3] == after[:3] and keys[3] != after[3]
    with pytest.raises(MachineError, match="texts and photographs") as refused:
        before[3].task(before[3].given)
    assert before[3].given.machine[:12] in refused.value.expected and refused.value.next_step


def test_a_processor_with_bfloat16_decides_what_large_models_are_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request("--on", "cpu:32", "--methods", "gptq,block-sign-rounding")
    results = Results(tmp_path, FORM)
    keys = [results.key(job) for job in jobs(asked, stamped=True)]
    monkeypatch.setattr(passes, "has_bfloat16", lambda: True)
    assert [results.key(job) for job in jobs(asked, stamped=True)] == keys, "a demo is small"
    monkeypatch.setattr(passes, "HALF_FROM", 1)
    after = [results.key(job) for job in jobs(asked, stamped=True)]
    assert [one == other for one, other in zip(keys, after, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("listed", [{"avx512_bf16", "amx_bf16"}, {"avx512f"}])
def test_a_worker_whose_samples_would_pass_in_other_numbers_is_refused(
    listed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "HALF_FROM", 1)
    monkeypatch.setattr(passes, "instructions", lambda: {"avx2", "avx512_bf16"})
    asked = request("--on", "cpu:32", "--methods", "gptq,block-sign-rounding")
    made = jobs(asked, stamped=True)
    assert [job.given.passes for job in made] == [None, None, "bfloat16 (avx512_bf16)", None]
    assert not any(job.given.passes for job in jobs(asked)), "nothing is kept: nothing is looked at"
    monkeypatch.setattr(passes, "instructions", lambda: listed)
    refused = carry_out(here(), Path.cwd(), made[2].task, made[2].given)
    assert isinstance(refused, MachineError)
    assert "other numbers than the machine that asks" in refused.what
    found = "bfloat16 (amx_bf16, avx512_bf16)" if "amx_bf16" in listed else "float32"
    assert refused.expected == f"bfloat16 (avx512_bf16), found {found}"
    assert "--ray" in refused.next_step
    there = jobs(asked, stamped=True)[2]
    monkeypatch.setattr(passes, "instructions", lambda: {"avx512_bf16"})
    assert isinstance(carry_out(here(), Path.cwd(), there.task, there.given), MachineError), "nor the other way round"


def test_a_worker_whose_samples_pass_alike_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "HALF_FROM", 1)
    monkeypatch.setattr(passes, "instructions", lambda: {"avx2", "avx512_bf16"})
    made = jobs(request("--on", "cpu:32", "--methods", "gptq"), stamped=True)

    def begun(request: ComparisonRequest) -> None:
        raise LookupError("the work begins")

    monkeypatch.setattr(comparison_jobs, "_bench", begun)
    monkeypatch.setattr(passes, "instructions", lambda: {"avx512f", "avx512_bf16"})
    with pytest.raises(LookupError, match="the work begins"):
        carry_out(here(), Path.cwd(), made[2].task, made[2].given)


def test_a_further_method_or_grid_leaves_the_results_of_the_others(tmp_path: Path) -> None:
    results = Results(tmp_path, FORM)
    one = jobs(request("--on", "cpu:32", "--methods", "gptq"))
    more = jobs(request("--on", "cpu:32", "--on", "android", "--methods", "gptq,mse-clip"))
    keys = {job.name: results.key(job) for job in more}
    assert {job.name: results.key(job) for job in one}.items() <= keys.items()
    assert len(set(keys.values())) == len(more) == 7


@pytest.mark.slow
def test_a_real_comparison_is_measured_once(tmp_path: Path) -> None:
    asked = request("--on", "cpu:32", "--methods", "mse-clip", "--pictures", "4", "--samples", "4")
    first = list(outcomes(jobs(asked, stamped=True), results=Results(tmp_path, FORM)))
    again = list(outcomes(jobs(asked, stamped=True), results=Results(tmp_path, FORM)))
    rows = [row for outcome in first if isinstance(outcome.result, list) for row in outcome.result]
    assert [row.method for row in rows] == ["fp32", "fp16", "plain rounding", "mse-clip"]
    assert [row.name for row in rows if row.setting and not row.size] == []
    assert all(outcome.kept for outcome in again) and not any(outcome.kept for outcome in first)
    assert [outcome.result for outcome in again] == [outcome.result for outcome in first]
    assert long_table(rows).count("\n") == 5
