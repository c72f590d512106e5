"""Scales tuned end to end: closer logits from the same codes, and no change that is no better."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibrate.conftest import tiny_spec
from calibrate.evaluation.score import compared
from calibrate.request import CalibrationRequest
from calibrate.run import calibrate, plan
from calibrate.run_test import contents, request
from calibrate.samples.prompts import prompts_of
from calibrate.statistics.capture import answer_logits
from calibrate.tuning.scale_tuning import _Layer, tunable, tuned_scales
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, LayerShape, Storage
from export.quantisation.stored import StoredCodes, read_manifest

SCALES = ".scales"


def tuned(output: Path, **changes: object) -> CalibrationRequest:
    return request(output, **{"precision": "int4", "method": "mse-clip", "samples": 4, "tune_scales": 3, **changes})


def stored_of(folder: Path, asked: CalibrationRequest) -> StoredCodes:
    planned = plan(asked)
    (backend,) = planned.wanted
    assert planned.checkpoint.weights is not None
    return StoredCodes(folder, backend, planned.checkpoint.weights, planned.assignments[backend])


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in a calibration's block files, wherever they lie."""
    return {name: value for path in folder.rglob("*.safetensors") for name, value in load_file(path).items()}


def nats(folder: Path, asked: CalibrationRequest) -> float:
    """Mean KL on the samples, block by block from what the folder stores: nothing of it is the tuning's own code."""
    planned = plan(asked)
    processor, prompts = prompts_of(asked, planned.checkpoint)
    stored, spec, weights = stored_of(folder, asked), planned.checkpoint.spec, planned.checkpoint.weights
    assert weights is not None
    read = DequantisedWeights(stored.weights, stored, planned.assignments[stored.backend], GRIDS)
    wanted, actual = (
        torch.cat([rows[0] for rows in answer_logits(spec, source, prompts, processor)]) for source in (weights, read)
    )
    return float(compared(wanted, actual).kl.mean())


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"block_size": 128}, torch.float16),
        ({"asymmetric": True, "block_size": 64}, torch.float16),
        ({"target": "android", "precision": "q4f16_1", "method": "awq", "samples": 3}, torch.float16),
        ({"target": "android", "precision": "q4f32_1", "tune_scales": 12, "samples": 3}, torch.float32),
        ({"target": "desktop-gpu", "backend": "tensorrt", "samples": 3}, torch.float16),
    ],
    ids=["symmetric", "zero points", "q4f16_1 awq", "q4f32_1", "tensorrt"],
)
def test_logits_come_closer_and_only_scales_change(changes: dict[str, object], dtype: torch.dtype, tmp_path: Path) -> None:
    after = tuned(tmp_path / "after", **changes)
    before = replace(after, output=tmp_path / "before", tune_scales=0)
    folders = calibrate(before), calibrate(after)
    old, new = (tensors_of(folder) for folder in folders)
    assert old.keys() == new.keys()
    moved = {name.removesuffix(SCALES) for name in old if not torch.equal(old[name], new[name])}
    assert all(old[name].dtype == new[name].dtype for name in old)
    assert all(torch.equal(old[name], new[name]) for name in old if not name.endswith(SCALES))
    assert {new[f"{layer}{SCALES}"].dtype for layer in moved} == {dtype}
    stored = stored_of(folders[1], after)
    record = stored.summary()["scale_tuning"]
    assert record["kept"]
    assert moved == set(record["layers"]) >= {"decoder.head", "decoder.layers.0.mlp.down"}
    for layer in moved:
        grid = GRIDS[stored.layers[layer].grid]
        scales, first = new[f"{layer}{SCALES}"].float(), old[f"{layer}{SCALES}"].float()
        assert torch.equal(grid.stored_scales(scales), scales)
        assert torch.equal(scales.sign(), first.sign())
        assert torch.allclose(scales, first, rtol=0.02, atol=1e-6)
    assert record["loss"]["after"] < record["loss"]["before"]
    assert nats(folders[0], before) == pytest.approx(record["kl"]["before"], rel=1e-3)
    assert nats(folders[1], after) == pytest.approx(record["kl"]["after"], rel=1e-3)
    assert record["kl"]["after"] < record["kl"]["before"]


@pytest.mark.parametrize(
    ("model", "parts"), [("awaker2.5-vl", ("",)), ("wemm", ("base",)), ("cogvlm2", ("vision", "language"))]
)
def test_decoders_with_experts_and_adapters(model: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    asked = tuned(tmp_path / "codes", model=model, samples=3, tune_scales=2)
    folder = calibrate(asked)
    record = read_manifest(folder)["backends"]["onnx"]["scale_tuning"]
    assert record["kept"]
    old, new = tensors_of(calibrate(replace(asked, output=tmp_path / "before", tune_scales=0))), tensors_of(folder)
    stay = {layer for layer in record["layers"] if torch.equal(old[f"{layer}{SCALES}"], new[f"{layer}{SCALES}"])}
    for part in parts:
        first = {layer for layer in record["layers"] if f".0.attention.qkv.{part}" in layer or f".0.mlp.{part}" in layer}
        assert first, part
        assert not first & stay, part
    assert all(".vision" in layer for layer in stay), "image rows that leave the last layer are read by nothing"
    assert nats(folder, asked) == pytest.approx(record["kl"]["after"], rel=1e-3)


def test_zero_steps_leave_no_trace(tmp_path: Path) -> None:
    folder = calibrate(tuned(tmp_path / "codes", tune_scales=0, samples=2))
    assert "tun" not in (folder / "manifest.json").read_text(encoding="utf-8")
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == sorted(
        f"decoder.{block}{ending}"
        for block in ("head", "layers.0", "layers.1", "layers.2")
        for ending in (".json", ".safetensors")
    )


@pytest.mark.parametrize("learning_rate", [2.0, 1e4], ids=["worse", "not finite"])
def test_scales_that_are_no_better_are_not_kept(
    learning_rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = calibrate(tuned(tmp_path / "plain", samples=2, tune_scales=0))
    monkeypatch.setattr(tuned_scales, "__defaults__", (learning_rate,))
    folder = calibrate(tuned(tmp_path / "codes", samples=2, tune_scales=2))
    record = read_manifest(folder)["backends"]["onnx"]["scale_tuning"]
    assert not record["kept"]
    after = record["loss"]["after"]
    assert (after is None) == (learning_rate == 1e4)
    assert after is None or after > record["loss"]["before"]
    untouched = {path: content for path, content in contents(plain).items() if path != "manifest.json"}
    files = contents(folder)
    assert {path: files[path] for path in untouched} == untouched
    assert set(files) - set(untouched) == {"manifest.json", "onnx/tuned.json"}


def test_wider_layers_of_a_choice_stay(tmp_path: Path) -> None:
    layer = "decoder.layers.1.mlp.down"
    choice = {"kind": "bit choice", "schema": 1, "backends": {"onnx": {layer: "int8"}}}
    (tmp_path / "choice.json").write_text(json.dumps(choice), encoding="utf-8")
    asked = tuned(tmp_path / "codes", samples=2, tune_scales=2, choice=tmp_path / "choice.json")
    record = read_manifest(calibrate(asked))["backends"]["onnx"]["scale_tuning"]
    assert record["kept"]
    assert layer not in record["layers"]
    assert len(record["layers"]) == 12


def test_samples_without_an_answer_have_one_position(user_folder: Path, tmp_path: Path) -> None:
    lines = (user_folder / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    bare = [json.loads(line) for line in lines]
    for line in bare:
        line["images"], line["messages"] = [], line["messages"][:1]
    (tmp_path / "conversations.jsonl").write_text("\n".join(json.dumps(line) for line in bare), encoding="utf-8")
    asked = tuned(tmp_path / "codes", data=tmp_path, samples=5, tune_scales=2)
    record = read_manifest(calibrate(asked))["backends"]["onnx"]["scale_tuning"]
    assert record["samples"] == record["positions"] == 5
    assert record["kept"]


@pytest.mark.parametrize("name", ["ort_int4_b16", "ort_int4_asym_b16", "trt_int4_b32", "q4f16_1", "q4f32_1", "ort_int8_row"])
def test_the_gradient_of_a_scale(name: str) -> None:
    """Against automatic differentiation through what is stored, with a last group that is not full."""
    grid, generator = GRIDS[name], torch.Generator().manual_seed(3)
    rows = torch.randn(4, 40, generator=generator)
    codes = grid.quantise(rows)
    layer = _Layer(codes, grid, 40)
    assert torch.equal(layer.scales(), codes.scales)
    layer.read()
    assert torch.equal(layer.weight.detach(), grid.dequantise(codes)[:, :40])
    wanted = torch.randn(4, 40, generator=generator)
    (layer.weight - wanted).square().sum().backward()
    layer.descend()
    change = torch.zeros(codes.scales.shape, dtype=torch.float64, requires_grad=True)
    centred = grid.dequantise(replace(codes, scales=torch.ones_like(codes.scales))).double()
    scales = codes.scales.double() * change.exp()
    read = (centred.view(*scales.shape, -1) * scales[..., None]).flatten(1)[:, :40]
    (read - wanted.double()).square().sum().backward()
    assert layer.change.grad is not None
    assert change.grad is not None
    assert torch.allclose(layer.change.grad.double(), change.grad, rtol=0.01, atol=0.01 * float(change.grad.abs().max()))
    layer.read()
    layer.descend()
    assert not layer.change.grad.any(), "a step in which nothing came by leaves no slope of an earlier one"


def test_a_head_that_is_the_embedding_stays() -> None:
    spec = tiny_spec("minicpm-v")
    assignments = {
        name: Assignment(LayerShape(name, role, 64, 32), Storage.INT4, "q4f16_1")
        for name, role in (("decoder.head", "head"), ("decoder.layers.0.mlp.down", "decoder"), ("vision.x", "vision"))
    }
    assert tunable(spec, assignments, assignments) == ["decoder.head", "decoder.layers.0.mlp.down"]
    tied = replace(spec, decoder=replace(spec.decoder, tied_head=True))
    assert tunable(tied, assignments, assignments) == ["decoder.layers.0.mlp.down"]
