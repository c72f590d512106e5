"""Checkpoints as bitsandbytes and transformers save them: the same model, of the values that the codes stand for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoint.opened import open_folder
from export.pipeline import export, plan
from export.plan.report import to_json
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from parity_tests.laboratory.bitsandbytes_checkpoint import SKIPPED, Form, quantise
from runtime_py.package import read

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "parity_tests" / "goldens" / "minicpm-llama3-v"
DEMO = ROOT / "export" / "demo" / "checkpoints" / "cogvlm2"

FORMS = [
    (GOLDEN, Form("nf4", True, 64, "float16"), 14 + 6),
    (GOLDEN, Form("fp4", False, 128, "float32"), 14 + 6),
    (DEMO, Form("nf4", False, 64, "bfloat16"), None),
    (DEMO, Form("int8"), None),
]
"""Checkpoint, form, and matrices that are quantised: of the golden seven in each decoder layer, and of the tower."""


def plainly_saved(quantised: Path, full: Path, place: Path) -> Path:
    """The values that a quantised checkpoint stands for, as a checkpoint that was never quantised."""
    weights = open_folder(quantised).weights
    assert weights is not None
    folder = Path(shutil.copytree(full, place, ignore=shutil.ignore_patterns("*.safetensors")))
    save_file({name: weights.source.read(name) for name in weights.source.infos}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(("full", "form", "count"), FORMS, ids=lambda value: getattr(value, "kind", ""))
def test_the_model_is_the_full_one_of_other_values(tmp_path: Path, full: Path, form: Form, count: int | None) -> None:
    names = quantise(full, tmp_path / "quantised", form)
    plain, other = open_folder(full), open_folder(tmp_path / "quantised")
    assert plain.weights is not None and other.weights is not None
    assert (other.spec, other.family) == (plain.spec, plain.family)
    assert sorted(other.weights.source.infos) == sorted(plain.weights.source.infos)
    assert any("mlp" in name for name in names) and not any(set(SKIPPED) & set(name.split(".")) for name in names)
    assert count is None or len([name for name in names if "layers" in name]) >= count
    for name, info in other.weights.source.infos.items():
        stored, values = plain.weights.source.read(name), other.weights.source.read(name)
        assert info.rounded_to == (form.kind if name in names else "")
        if name in names:
            error = (stored.float() - values.float()).norm() / stored.float().norm()
            assert 0 < error < (0.02 if form.kind == "int8" else 0.2), name
        else:
            assert torch.equal(stored, values), name
    for target, rule in other.weights.rules.items():
        if rule.shape:
            half = rule.shape[0] // 2
            assert torch.equal(other.weights.rows(target, half, half + 1), other.weights.tensor(target)[half : half + 1])


@pytest.mark.parametrize("target", ["android", "cpu"])
def test_a_dry_run_is_that_of_the_full_one_and_a_note(tmp_path: Path, target: str) -> None:
    names = quantise(GOLDEN, tmp_path / "quantised", Form())
    asked = ExportRequest(str(tmp_path / "quantised"), target, precision="int4", without_tokenizer=True, host_only=True)
    asked = replace(asked, host_only=False) if target == "cpu" else asked
    quantised, full = plan(asked, None), plan(replace(asked, model=str(GOLDEN)), None)
    (note,) = set(quantised.notes) - set(full.notes)
    assert f"{len(names)} matrices as nf4" in note and "full-precision checkpoint" in note
    told, plain = to_json(quantised), to_json(full)
    for key in ("layers", "bits_per_weight", "stages", "other_file_bytes", "device_bytes", "export_peak_bytes"):
        assert told[key] == plain[key], key


def test_a_file_of_scales_alone_is_one_that_the_package_depends_on(tmp_path: Path) -> None:
    quantise(GOLDEN, tmp_path / "quantised", Form())
    whole = tmp_path / "quantised" / "model.safetensors"
    tensors = load_file(whole)
    scales = {name: value for name, value in tensors.items() if name.endswith("absmax")}
    whole.unlink()
    rest = {name: value for name, value in tensors.items() if name not in scales}
    for number, part in enumerate((rest, scales), 1):
        save_file(part, whole.with_name(f"model-0000{number}-of-00002.safetensors"))
    files = open_folder(tmp_path / "quantised").files()
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= set(files)


def files_of(package: Path) -> dict[str, bytes]:
    """Everything but what says which files it was made of, and when."""
    named = {"manifest.json", "journal.jsonl"}
    return {
        path.relative_to(package).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name not in named
    }


@pytest.mark.parametrize(("full", "form"), [(GOLDEN, Form("nf4", True, 64, "float16")), (DEMO, Form("int8"))])
def test_a_package_is_that_of_the_values_and_passes_its_check(tmp_path: Path, full: Path, form: Form) -> None:
    quantise(full, tmp_path / "quantised", form)
    asked = ExportRequest(
        str(tmp_path / "quantised"), "cpu", precision="int4", output=tmp_path / "out", without_tokenizer=full is GOLDEN
    )
    package = export(asked, PackageVerifier())
    assert read(package).manifest["verification"]["verdict"] == "pass"
    config = json.loads((package / "config.json").read_text())
    assert "quantization_config" not in config and config["hidden_size"]
    values = plainly_saved(tmp_path / "quantised", full, tmp_path / "values")
    other = export(replace(asked, model=str(values), output=tmp_path / "other", skip_verify=True), None)
    ours, theirs = files_of(package), files_of(other)
    assert {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)} <= {"selftest/sample.json"}
