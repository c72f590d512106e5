"""A tower's finer layers on the demos: what each alone costs, as few as a worst token needs, and packages made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calibrate.command.cli import main
from calibrate.command.vision_cli import of_samples
from calibrate.samples.demo_samples import own_samples
from calibrate.vision.search import PLANNED, VisionSearch
from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.record import FINE_GRID, TOKEN_GRID
from export.checkpoint.opened import open_folder
from export.demo.reference import recipe_of
from export.quantisation.choice import read_choice, widened
from export.quantisation.spec import Storage
from export.source.hub import DEMO_FOLDER
from runtime_py import tokenizer
from runtime_py.errors import ExitCode, UsageError
from targets.registry import target_named

FLAGS = ["vision", "--model", "cogvlm2", "--weights", "demo", "--target", "cpu", "-q"]
FEW = ["--samples", "6", "--held-out", "5"]


@pytest.fixture(scope="module")
def search() -> VisionSearch:
    """CogVLM2's demo, whose tower needs finer layers most."""
    opened = open_folder(DEMO_FOLDER / "cogvlm2")
    target = target_named("cpu")
    planned = OnnxBackend().assignments(opened.spec, BuildOptions(target, "int4", target.limits))
    processor = opened.family.make_processor(opened.spec, tokenizer.load(DEMO_FOLDER / "cogvlm2"))
    drawn = [of_samples(list(own_samples(recipe_of("cogvlm2"), 6, seed))) for seed in (0, 1)]
    seen, others = ([piece.vision for one in some for piece in processor.images((one,))] for some in drawn)
    assert opened.weights is not None
    return VisionSearch(opened.spec, opened.weights, "onnx", planned, seen, others, {}, lambda: None)


def test_each_layer_alone_costs_less_in_finer_forms(search: VisionSearch) -> None:
    steps = search.steps()
    assert len(search.planned) == 12 and len(steps) == 20, "up to the first block 14 bits are there already"
    assert all(search.known[f"{layer} fp16"] < 0.01 * search.known[f"{layer} {PLANNED}"] for layer in search.planned)
    rounded = [layer for layer, forms in search.forms.items() if "int8_14" in forms]
    costs = [sum(search.known[f"{layer} {form}"] for layer in rounded) for form in (PLANNED, "int8_14")]
    assert costs[1] < 0.5 * costs[0], "of single layers on so few pictures chance may say otherwise"
    assert steps == sorted(steps, key=lambda step: -step.saved / step.added)


def test_full_precision_comes_back(search: VisionSearch) -> None:
    search.worst({})
    search.tower.hold({})
    assert float(search.samples.worst().abs().max()) < 1e-12


def test_as_few_as_the_worst_token_needs(search: VisionSearch) -> None:
    start = search.worst({})
    chosen, reached = search.until(0.9995)
    assert min(start.samples, start.held_out) < 0.9995 <= min(reached.samples, reached.held_out)
    assert 0 < len(chosen) < len(search.planned)
    assert 1 < search.cost(chosen) < search.cost(dict.fromkeys(search.planned, "fp16"))
    coarsest = {layer: form for layer, form in chosen.items() if layer != next(iter(chosen))}
    assert search.cost(coarsest) < search.cost(chosen)


def test_what_no_form_reaches_is_told(search: VisionSearch) -> None:
    with pytest.raises(UsageError, match="not reached with every vision layer in its finest form"):
        search.until(1.1)


def test_a_choice_becomes_the_assignments(search: VisionSearch) -> None:
    first, second = "vision_encoder.blocks.1.attention.qkv", "vision_encoder.blocks.0.mlp.fc1"
    after = widened("onnx", search.planned, {first: "int8_14", second: "fp16"})
    assert (after[first].storage, after[first].grid) == (Storage.INT8, FINE_GRID)
    assert (after[second].storage, after[second].grid) == (Storage.FP16, "")
    assert {a.grid for name, a in after.items() if name not in (first, second)} == {TOKEN_GRID}
    assert "chosen by calibrate vision" in after[first].reason
    with pytest.raises(UsageError, match=r"makes vision_encoder.blocks.1.attention.qkv int4"):
        widened("onnx", search.planned, {first: "int4"})


def test_the_command_writes_a_choice_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "choice.json"
    assert main([*FLAGS, *FEW, "--cosine", "0.9995", "--json", "-o", str(path)]) == ExitCode.OK
    value, read = json.loads(capsys.readouterr().out), read_choice(path)
    assert read == value and not path.with_name("choice.json.partial").exists()
    assert read["measured_on"] == {"source": "demo pictures", "count": 6, "held_out": 5, "seed": 0}
    assert min(read["scores"]["this choice"].values()) >= 0.9995 > min(read["scores"]["as planned"].values())
    assert read["backends"]["onnx"] and read["products"] > 1


def test_a_tower_that_is_near_enough_keeps_its_plan(tmp_path: Path) -> None:
    path = tmp_path / "choice.json"
    assert main([*FLAGS, *FEW, "--cosine", "0.5", "-o", str(path)]) == ExitCode.OK
    assert read_choice(path)["backends"] == {"onnx": {}}


def test_a_search_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*FLAGS, *FEW, "-o", str(tmp_path / "choice.json")]
    original, counted = torch.Tensor.amin, list[int]()

    def failing(self, *given, **named):
        counted.append(1)
        if len(counted) > 400:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    monkeypatch.setattr(torch.Tensor, "amin", failing)
    assert main(asked) != ExitCode.OK
    monkeypatch.undo()
    partial = tmp_path / "choice.json.partial"
    measured = json.loads(partial.read_text(encoding="utf-8"))["sensitivity"]
    assert measured
    assert main(asked) == ExitCode.USAGE
    assert main([*asked, "--resume", "--seed", "1"]) == ExitCode.USAGE
    assert main([*asked, "--resume"]) == ExitCode.OK
    assert read_choice(tmp_path / "choice.json")["sensitivity"].items() >= measured.items()
    assert not partial.exists()


@pytest.mark.parametrize("asked", [["--target", "android"], ["--target", "cpu", "--vision-precision", "fp16"]])
def test_towers_that_round_no_input_need_no_choice(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["vision", "--model", "cogvlm2", "--weights", "demo", *asked, "-q"]
    assert main([*flags, "-o", str(tmp_path / "choice.json")]) == ExitCode.USAGE
    assert "rounds its input" in capsys.readouterr().err
