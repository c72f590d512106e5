"""A package with a decoder library: it is held against the reference too, and a fault in it alone is found and named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.source.hub import DEMO_FOLDER
from parity_tests.backends.examiner import LIBRARY
from parity_tests.check.package_check import CheckOptions, check
from runtime_py.backends import decoder_library
from runtime_py.backends.records import DECODER_LIBRARY
from runtime_py.errors import MachineError
from runtime_py.package import read

CHECKPOINT = DEMO_FOLDER / "minicpm-v"
OPTIONS = CheckOptions(steps=3, only="text", trust=True)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_what_the_library_says_is_judged(library_package: Path, in_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_pieces:
        monkeypatch.setattr("parity_tests.check.package_check.streams", lambda *_: True)
    judged = check(library_package, CHECKPOINT, replace(OPTIONS, in_pieces=in_pieces)).judgement
    assert (str(judged.verdict), judged.first_failure) == ("pass", "")
    names = [c.comparison.title for c in judged.comparisons]
    assert names == ["implementation", "kernels", "loss", f"{LIBRARY}: kernels"]
    rows = {c.comparison.title: {p.measurement.probe: p.measurement.metrics for p in c.probes} for c in judged.comparisons}
    plain, ours = rows["kernels"], rows[f"{LIBRARY}: kernels"]
    assert all(plain[probe] != ours[probe] for probe in ("prefill_logits", "step_logits")), "something else runs"


def test_a_fault_in_the_library_alone_is_found_and_named(library_package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library_package, tmp_path / "package"))
    index = copy / read(copy).manifest["backends"]["onnx"][DECODER_LIBRARY]["index"]
    told = json.loads(index.read_text(encoding="utf-8"))
    rows = {row[0]: row for row in told["parameters"]}
    one, other = (rows[f"layers.{layer}.mlp.down.weight_scales"] for layer in (0, 1))
    one[4], other[4] = other[4], one[4]
    index.write_text(json.dumps(told), encoding="utf-8")
    result = check(copy, CHECKPOINT, OPTIONS)
    assert result.verdict == "fail"
    assert result.first_failure is not None and result.first_failure.startswith(f"{LIBRARY}: kernels")
    parting = result.judgement.run.divergence
    assert parting is not None and (parting.stage, parting.block) == ("decoder", "")
    assert "otherwise than the graph" in parting.note


def test_where_it_does_not_run_the_package_is_not_all_run(library_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> str:
        raise MachineError("this processor runs none", "another", "export again")

    monkeypatch.setattr(decoder_library, "chosen_variant", none)
    result = check(library_package, CHECKPOINT, OPTIONS)
    assert (LIBRARY, "this processor runs none; export again") in result.judgement.run.not_run
