"""What an export refuses of a checkpoint's weights and tokenizer before it builds anything, by the demo checkpoints."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoint.opened import describe_checkpoint, open_folder
from export.checkpoint.recognised import recognise_checkpoint
from export.pipeline import export, plan
from export.request import ExportRequest
from runtime_py.errors import CheckpointError, UnsupportedModelError, UsageError

DEMOS = Path(__file__).parents[1] / "demo" / "checkpoints"
TARGETS = ("cpu", "android")
Change = Callable[[dict[str, torch.Tensor]], None]


def changed(place: Path, name: str, change: Change) -> Path:
    folder = Path(shutil.copytree(DEMOS / name, place / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


def request(folder: Path, target: str, precision: str) -> ExportRequest:
    output = folder.parent / "out"
    return ExportRequest(model=str(folder), target=target, precision=precision, output=output, skip_verify=True)


def put(name: str, value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].float()
        tensors[name].view(-1)[5] = value

    return change


NORM, MLP = "llm.model.norm.weight", "llm.model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "value"), [(NORM, math.nan), (MLP, -math.inf), (MLP, math.nan)])
def test_values_that_are_not_finite_are_named_before_any_work(tmp_path: Path, target: str, name: str, value: float) -> None:
    folder = changed(tmp_path, "minicpm-v", put(name, value))
    precision = "fp32" if target == "cpu" else "q4f32_1"
    with pytest.raises(CheckpointError, match=f"{name} .*NaN or infinity"):
        export(request(folder, target, precision), None)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".onnx", ".onnx_data", ".tar", ".bin")]


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp16"), ("android", "fp16"), ("android", "int4")])
def test_values_beyond_float16_are_named_before_any_work(tmp_path: Path, target: str, precision: str) -> None:
    folder = changed(tmp_path, "minicpm-v", put(MLP, 7e4))
    with pytest.raises(CheckpointError, match=rf"{MLP} .*70000 in rows .*beyond float16") as caught:
        export(request(folder, target, precision), None)
    assert "--precision fp32" in caught.value.next_step


def renamed(prefix: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


@pytest.mark.parametrize("name", ["minicpm-v", "omnilmm-12b", "wemm", "cogvlm2"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_names_of_training_frameworks_are_understood_in_every_family(tmp_path: Path, name: str, prefix: str) -> None:
    plain, other = open_folder(DEMOS / name), open_folder(changed(tmp_path, name, renamed(prefix)))
    assert plain.weights is not None and other.weights is not None
    assert other.spec == plain.spec
    for target in plain.weights.rules:
        assert other.weights.tensor(target).equal(plain.weights.tensor(target))


def test_parts_and_pickles_under_such_names(tmp_path: Path) -> None:
    """XVERSE-V's three parts, each with another prefix, and Awaker's file, whose own prefix stays."""
    folder = Path(shutil.copytree(DEMOS / "xverse-v", tmp_path / "xverse"))
    for part, prefix in (("xverse-llm", "base_model.model."), ("clip-vit", "module.")):
        tensors = load_file(folder / part / "model.safetensors")
        renamed(prefix)(tensors)
        save_file(tensors, str(folder / part / "model.safetensors"))
    awaker = Path(shutil.copytree(DEMOS / "awaker2.5-vl", tmp_path / "awaker"))
    stored = torch.load(awaker / "pytorch_model.bin", weights_only=True)
    torch.save({f"module.{name}": value for name, value in stored.items()}, awaker / "pytorch_model.bin")
    for name, place in (("xverse-v", folder), ("awaker2.5-vl", awaker)):
        plain, other = open_folder(DEMOS / name), open_folder(place)
        assert plain.weights is not None and other.weights is not None and other.family is plain.family
        for target in plain.weights.rules:
            assert other.weights.tensor(target).equal(plain.weights.tensor(target))


def test_adapters_are_refused_by_name_in_a_plan(tmp_path: Path) -> None:
    def adapted(tensors: dict[str, torch.Tensor]) -> None:
        tensors[MLP.replace(".weight", ".lora_A.default.weight")] = torch.zeros(4, 320)

    with pytest.raises(CheckpointError, match=r"not merged: .*down_proj\.lora_A\.default\.weight"):
        plan(request(changed(tmp_path, "minicpm-v", adapted), "cpu", "fp32"), None)


def test_weights_in_several_folders_are_checked_by_a_plan() -> None:
    described = describe_checkpoint(ExportRequest(model=str(DEMOS / "xverse-v"), target="cpu"))
    assert described.weights is not None


def test_a_folder_without_a_config_is_told_so(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMOS / "minicpm-v", tmp_path / "checkpoint"))
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        open_folder(folder)


def test_files_of_another_runtime_are_named(tmp_path: Path) -> None:
    """In a folder of nothing else, and beside the config.json of the model that they were made from."""
    names = ("mmproj-model-f16.gguf", "model-Q4_K_M.gguf")
    for name in names:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match=r"holds 'mmproj-model-f16\.gguf', 'model-Q4_K_M\.gguf'") as told:
        plan(request(tmp_path, "cpu", "fp32"), None)
    advice = "GGUF files are made from a checkpoint and not read; name the one they were made from"
    assert told.value.next_step.startswith(advice)
    shutil.copyfile(DEMOS / "minicpm-v" / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"'model-Q4_K_M\.gguf'") as beside:
        open_folder(tmp_path)
    assert beside.value.next_step.startswith(advice)


def replace_matrix(**parts: torch.Tensor) -> Change:
    """`MLP` as other tensors, by the end of their names."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[MLP]
        tensors.update({MLP.removesuffix("weight") + end: tensor for end, tensor in parts.items()})

    return change


def cast(dtype: torch.dtype) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[MLP] = tensors[MLP].float().to(dtype)

    return change


@pytest.mark.parametrize(
    ("change", "next_step"),
    [
        (replace_matrix(qweight=torch.zeros(40, 128, dtype=torch.int32), scales=torch.ones(10, 128)), "are quantised"),
        (replace_matrix(weight_packed=torch.zeros(128, 40, dtype=torch.int32), weight_scale=torch.ones(1)), "are quantised"),
        (replace_matrix(weight=torch.zeros(20480, 1, dtype=torch.uint8), absmax=torch.zeros(640)), "are quantised"),
        (cast(torch.float8_e4m3fn), "are quantised"),
        (cast(torch.int8), "are quantised"),
        (cast(torch.float64), "save the weights in float32"),
        (replace_matrix(), "downloaded whole"),
    ],
)  # fmt: skip
def test_weights_in_a_form_that_no_config_tells_of_are_told_what_they_are(
    tmp_path: Path, change: Change, next_step: str
) -> None:
    with pytest.raises(CheckpointError, match=r"does not match its config") as refusal:
        open_folder(changed(tmp_path, "minicpm-v", change))
    assert next_step in refusal.value.next_step and MLP.removesuffix("weight") in refusal.value.what


@pytest.mark.parametrize("asked", ["", "models--openbmb--MiniCPM-V", "models--openbmb--MiniCPM-V/snapshots", ".."])
def test_the_folder_above_a_checkpoint_names_it(tmp_path: Path, asked: str) -> None:
    """As the hub's cache has it, whose folders are what people copy from an address line; one of another model beside it."""
    cache = tmp_path / "hf" / "hub"
    snapshot, other = (cache / f"models--{name}" / "snapshots" / "0a1b" for name in ("openbmb--MiniCPM-V", "org--another"))
    for folder in (snapshot, other):
        folder.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((DEMOS / "minicpm-v" / "config.json").read_bytes())
    (other / "config.json").write_text('{"model_type": "bert"}')
    package = tmp_path / "a package"
    package.mkdir()
    for name in ("config.json", "manifest.json"):
        (package / name).write_bytes((snapshot / "config.json").read_bytes())
    with pytest.raises(UsageError, match=r"has no config\.json, or an empty one; a folder within has one") as caught:
        recognise_checkpoint((cache / asked).resolve())
    assert caught.value.next_step == f"name {snapshot}"
