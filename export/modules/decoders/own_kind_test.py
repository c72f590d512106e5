"""A family outside the checkout with an adapter of its own kind: planned, exported, proven, built for a phone.

A bottleneck behind each MLP (Houlsby et al. 2019, arXiv:1902.00751), which rows of a picture alone go through, as far as a
learned gate lets them: y = mlp(x) + [row is of a picture] tanh(g) B gelu(A mlp(x)).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrate.conftest import RandomWeights, decoder_call, run_decoder
from calibrate.statistics.folds_test import overlay_of
from export.backends.mlc.batch_decoder_test import Sequences
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.new_family_test import family_outside
from export.pipeline import export
from export.quantisation.overlay import OverlaidWeights
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import DECODER

NAME = "houlsbylike"
PICTURE = slice(2, 7)
"""Rows of a picture among the `TOKENS` of a call here."""
TOKENS = 11

ADAPTER_FILE = '''
from dataclasses import dataclass
from export.modules.decoders.base import AdapterSpec
from export.quantisation.folds import Fold, around, projected, up_rows, value_rows
from runtime_py.contracts import TensorContract

@dataclass(frozen=True)
class Bottleneck(AdapterSpec):
    """Rows of a picture go through a bottleneck behind every MLP."""

    rank: int
    module = "houlsbylike.modules:BottleneckDecoder"
    block = "houlsbylike.blocks:BottleneckParts"
    picture_rows = "bottlenecks of their own"

    def inputs(self, decoder):
        return (TensorContract("picture_rows", "float32", ("batch", "tokens")),)

    def row_inputs(self, pictures):
        return {"picture_rows": [[float(picture) for picture in pictures]]}

    def folds(self, decoder, block):
        qkv, out, gate_up, down = projected(block)
        values = value_rows(decoder, qkv, decoder.qkv_bias)
        return [*around(decoder, block, (qkv,), (out,), (gate_up,), values), Fold((down,), up_rows(decoder, gate_up))]
'''

MODULES_FILE = """
import torch
from torch import nn
from torch.nn import functional as F
from export.modules.decoders.llama import DecoderLayers, GatedMlp, LayerParts, Routed
from export.modules.kernels import Role

class BottleneckMlp(GatedMlp, Routed):
    def __init__(self, name, spec, kernels):
        super().__init__(name, spec, kernels)
        self.narrow = kernels.linear(f"{name}.narrow", spec.hidden, spec.adapter.rank, False, Role.ADAPTER)
        self.wide = kernels.linear(f"{name}.wide", spec.adapter.rank, spec.hidden, False, Role.ADAPTER)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, x, routing):
        y = super().forward(x)
        added = self.wide(F.gelu(self.narrow(y)))
        return y + torch.tanh(self.gate) * routing[0][..., None].to(y.dtype) * added

class BottleneckParts(LayerParts):
    def mlp(self, name):
        return BottleneckMlp(name, self.spec, self.kernels)

class BottleneckDecoder(DecoderLayers):
    parts = BottleneckParts

    def forward(self, inputs_embeds, attention_mask, position_ids, picture_rows, logit_positions, past_key_values):
        given = inputs_embeds, attention_mask, position_ids, logit_positions, past_key_values
        return self.run(*given, (picture_rows,))
"""

BLOCKS_FILE = """
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from export.backends.mlc.blocks.layer_parts import LayerParts, Routed

class BottleneckMlp(Routed):
    def __init__(self, name, mlp, spec, layers):
        self.gate_up, self.down, self.inner = mlp.gate_up, mlp.down, mlp.forward
        self.narrow = layers.linear(f"{name}.narrow", spec.hidden, spec.adapter.rank, False)
        self.wide = layers.linear(f"{name}.wide", spec.adapter.rank, spec.hidden, False)
        self.gate = nn.Parameter((1,), layers.dtype)
        self.dtype = layers.dtype

    def forward(self, x, sides):
        y = self.inner(x)
        if "picture_rows" not in sides:
            return y
        rows = op.unsqueeze(sides["picture_rows"], 2).astype(self.dtype)
        return y + op.tanh(self.gate) * rows * self.wide(op.gelu(self.narrow(y)))

class BottleneckParts(LayerParts):
    def mlp(self, name):
        return BottleneckMlp(name, super().mlp(name), self.spec, self.layers)
"""

FAMILY_FILE = """
from dataclasses import replace
from export.families.omnilmm_12b.family import OmniLMM12B
from export.families.omnilmm_12b.weights import rules, unused_block
from export.families.tensors import PublishedTensors
from export.source.weight_map import take
from houlsbylike.adapter import Bottleneck

def adapted(spec):
    hidden, rank = spec.decoder.hidden, spec.decoder.adapter.rank
    yield from rules(spec)
    for i in range(spec.decoder.layers):
        ours, theirs = f"decoder.layers.{i}.mlp", f"model.layers.{i}.mlp.adapter"
        yield take(f"{ours}.narrow.weight", f"{theirs}.down.weight", (rank, hidden))
        yield take(f"{ours}.wide.weight", f"{theirs}.up.weight", (hidden, rank))
        yield take(f"{ours}.gate", f"{theirs}.gate", (1,))

class Houlsbylike(OmniLMM12B):
    tensors = PublishedTensors(lambda spec: list(adapted(spec)), unread=unused_block)

    def spec(self, config, source):
        whole = super().spec(config, source)
        return replace(whole, decoder=replace(whole.decoder, adapter=Bottleneck(32)))

FAMILY = Houlsbylike()
"""

PROCESSOR_FILE = """
from dataclasses import replace
import numpy as np
from runtime_py.preprocess import omnilmm_12b

class Processor(omnilmm_12b.Processor):
    def layout(self, input_ids, images):
        made = super().layout(input_ids, images)
        return replace(made, decoder={**made.decoder, "picture_rows": made.image_rows[None].astype(np.float32)})

    def next_inputs(self, layout, length):
        return {**super().next_inputs(layout, length), "picture_rows": np.zeros((1, 1), np.float32)}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The distribution, installed for this module; its package's name."""
    modules = {"adapter": ADAPTER_FILE, "modules": MODULES_FILE, "blocks": BLOCKS_FILE}
    modules |= {"family": FAMILY_FILE, "processor": PROCESSOR_FILE}
    with family_outside(NAME, "omnilmm-12b", modules, tmp_path_factory.mktemp("own_kind")) as name:
        yield name


@pytest.fixture(scope="module")
def checkpoint(package: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return synthesize(SynthesisRequest(package, "tiny", folder, "", "float32")).folder


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("cpu", "fp32"),
        ("cpu", "int4"),
        pytest.param("android", "fp32", marks=pytest.mark.slow),
        pytest.param("android", "int4", marks=pytest.mark.slow),
    ],
)
def test_it_is_exported_and_agrees_with_the_reference(checkpoint: Path, tmp_path: Path, target: str, precision: str) -> None:
    """The export itself compares the package with the module, which the next test compares with transformers' class."""
    request = ExportRequest(str(checkpoint), target, precision=precision, output=tmp_path / "out", without_tokenizer=True)
    made = json.loads((export(request, PackageVerifier()) / "manifest.json").read_text())
    assert made["verification"]["verdict"] == "pass"
    inputs = {tensor["name"]: tensor["shape"] for tensor in made["contracts"][DECODER]["inputs"]}
    assert inputs["picture_rows"] == ["batch", "tokens"]


def test_the_decoder_equals_the_class_of_transformers_with_bottlenecks_hooked_in(checkpoint: Path) -> None:
    transformers = pytest.importorskip("transformers")
    opened = open_checkpoint(checkpoint)
    spec, source = opened.spec.decoder, opened.weights.source
    config = transformers.MistralConfig(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.mlp_width,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope.theta,
        sliding_window=None,
        tie_word_embeddings=False,
    )
    model = transformers.MistralForCausalLM(config).eval()
    stored = {name: source.read(name).float() for name in source.infos if name.startswith(("model.", "lm_head."))}
    own = set(model.state_dict())
    model.load_state_dict({name: tensor for name, tensor in stored.items() if name in own})
    rows = torch.zeros(1, TOKENS)
    rows[:, PICTURE] = 1

    def hook(number: int) -> Any:
        narrow, wide, gate = (stored[f"model.layers.{number}.mlp.adapter.{name}"] for name in PUBLISHED)

        def behind(_: Any, __: Any, y: torch.Tensor) -> torch.Tensor:
            return y + rows[..., None] * torch.tanh(gate) * (torch.nn.functional.gelu(y @ narrow.T) @ wide.T)

        return behind

    embeds = torch.randn(1, TOKENS, spec.hidden, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(inputs_embeds=embeds).logits.numpy()
        for number, layer in enumerate(model.model.layers):
            layer.mlp.register_forward_hook(hook(number))
        expected = model(inputs_embeds=embeds).logits.numpy()
    assert np.abs(plain - expected)[:, PICTURE].max() > 0.05 * np.abs(expected).max(), "the adapter says nothing"
    backend = TorchBackend(opened.spec, opened.weights)
    given = {
        "inputs_embeds": embeds.numpy(),
        "position_ids": np.arange(TOKENS)[None],
        "picture_rows": rows.numpy(),
    }
    actual = backend.forward(backend.start(TOKENS), given, np.arange(TOKENS))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


PUBLISHED = ("down.weight", "up.weight", "gate")
"""Names under which the checkpoint holds a bottleneck."""


@dataclass(frozen=True)
class Held:
    """The weights of a library."""

    weights: Mapping[str, np.ndarray]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.weights[name])


def test_the_relax_parts_agree_with_the_module(checkpoint: Path) -> None:
    """Of a prompt with a picture, of text alone in the stock function, and of a token of each of several sequences."""
    spec = open_checkpoint(checkpoint).spec
    call = decoder_call(spec)
    made, embeds = Sequences(spec, "run_decoder", "batch_prefill", "batch_run_decoder"), call["inputs_embeds"].numpy()
    tokens, last = embeds.shape[1], np.zeros(1, np.int32)
    for function, rows in (("run_decoder", call["picture_rows"]), ("batch_prefill", torch.zeros(1, tokens))):
        sides = [rows.numpy()] if function == "run_decoder" else []
        (state,) = made.begin(1)
        with made.paged.fed([state], tokens):
            actual = made.library(function, embeds, np.array([tokens - 1], np.int32), *sides, state.cache)[0].numpy()
        expected = run_decoder(spec, Held(made.weights), {**call, "picture_rows": rows})[:, -1:].numpy()
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    rows = np.array([[0], [1], [0.5]], np.float32)
    states, steps = made.begin(3), embeds[0, :3, None]
    with made.paged.fed(states, 1):
        together = made.library("batch_run_decoder", steps, rows, states[0].cache)[0].numpy()
    for step, own, said in zip(steps, rows, together, strict=True):
        (state,) = made.begin(1)
        with made.paged.fed([state], 1):
            alone = made.library("run_decoder", step[None], last, own[None], state.cache)[0].numpy()
        np.testing.assert_array_equal(said, alone[0])


def test_factors_go_where_the_kind_says_and_change_nothing(checkpoint: Path) -> None:
    spec = open_checkpoint(checkpoint).spec
    weights, call = RandomWeights(spec), decoder_call(spec)
    wanted = run_decoder(spec, weights, call)
    overlay = overlay_of(spec, weights)
    assert {name.split(".")[-2] for name in overlay.columns} == {"qkv", "out", "gate_up", "down", "head"}
    actual = run_decoder(spec, OverlaidWeights(weights, overlay), call)
    assert float((wanted - actual).abs().max()) < 1e-4 * float(wanted.abs().max())
