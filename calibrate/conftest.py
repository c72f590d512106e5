"""Tiny models of every family with random weights, for tests of calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.families.registry import families
from export.modules.build import build_stage, parameter_shapes
from export.modules.kernels import Kernels
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec


class RandomWeights:
    """A WeightProvider of random parameters, the same for the same seed; matrices at variance 1 / columns."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameters = {}
        for name, shape in parameter_shapes(spec).items():
            drawn = torch.randn(shape, generator=generator)
            norm = len(shape) == 1 and name.endswith("norm.weight")
            self.parameters[name] = 1 + 0.2 * drawn if norm else drawn / (shape[-1] ** 0.5 if len(shape) > 1 else 10)

    def shape(self, target: str) -> tuple[int, ...]:
        return tuple(self.parameters[target].shape)

    def tensor(self, target: str) -> torch.Tensor:
        return self.parameters[target].clone()

    def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
        return self.parameters[target][start:stop].clone()


def tiny_spec(family: str) -> ModelSpec:
    record = families()[family]
    return record.spec(record.published_config("", "tiny"), EmptySource())


def decoder_call(spec: ModelSpec, tokens: int = 12, seed: int = 1) -> dict[str, Any]:
    """Inputs of one prefill whose tokens 2 to 6 are image rows."""
    decoder = spec.decoder
    positions = torch.arange(tokens)[None]
    empty = torch.zeros(1, decoder.kv_heads, 0, decoder.head_dim)
    call: dict[str, Any] = {
        "inputs_embeds": torch.randn(1, tokens, decoder.hidden, generator=torch.Generator().manual_seed(seed)),
        "attention_mask": torch.ones(1, tokens, dtype=torch.int64),
        "position_ids": positions.expand(len(decoder.rope.sections), 1, tokens) if decoder.rope.sections else positions,
        "logit_positions": torch.arange(tokens),
        "past_key_values": [(empty, empty)] * decoder.layers,
    }
    rows = decoder.layer_kind.row_inputs([2 <= row < 6 for row in range(tokens)])
    for tensor in decoder.layer_kind.inputs(decoder):
        if tensor.name in rows:
            call[tensor.name] = torch.tensor(rows[tensor.name], dtype=getattr(torch, tensor.dtype))
        else:
            shape = [int(size) for size in tensor.shape]
            call[tensor.name] = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    return call


def run_decoder(spec: ModelSpec, weights: Any, call: dict[str, Any]) -> torch.Tensor:
    """Logits of the reference that holds these weights."""
    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    parameters = {name: weights.tensor(f"decoder.{name}").float() for name, _ in module.named_parameters()}
    with torch.no_grad():
        logits: torch.Tensor = torch.func.functional_call(module, parameters, (), call)[0]
    return logits


@pytest.fixture(params=sorted(families()))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """The tiny spec of each family in turn."""
    return tiny_spec(request.param)


@pytest.fixture
def random_weights() -> Callable[[ModelSpec], RandomWeights]:
    return RandomWeights


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MiniCPM-V demo without its last decoder layer: a checkpoint with a tokenizer and without the demo's task."""
    from safetensors.torch import load_file, save_file

    from export.source.hub import DEMO_FOLDER

    folder = tmp_path_factory.mktemp("checkpoint") / "minicpm-v"
    shutil.copytree(DEMO_FOLDER / "minicpm-v", folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    last = config["num_hidden_layers"] - 1
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": last}), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if f"layers.{last}." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations about drawn pictures, every third without an answer, as --calibration-data takes them."""
    from PIL import Image

    from calibrate.samples.data import built_in
    from calibrate.samples.records import CONVERSATIONS

    folder = tmp_path_factory.mktemp("conversations")
    lines = []
    for number, sample in enumerate(built_in(12, 77, side=112)):
        Image.fromarray(sample.pictures[0]).save(folder / f"{number}.png")
        turns = sample.messages[:1] if number % 3 == 2 else sample.messages[:2]
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        lines.append(json.dumps({"images": [f"{number}.png"], "messages": messages}, ensure_ascii=False))
    (folder / CONVERSATIONS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
