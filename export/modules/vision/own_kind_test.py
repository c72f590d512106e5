"""A family outside the checkout with a tower of its own kind, InternViT-6B: planned, exported, proven, built for a phone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.backends.base import BuildOptions
from export.backends.mlc.activations import image_activations
from export.backends.mlc.activations_test import HALF, planned
from export.backends.mlc.blocks.conftest import assert_close, build, random_weights
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.support import most_patches, unsupported
from export.backends.onnx.vision_library import written
from export.backends.tensorrt.profiles import stage_profiles
from export.checkpoint.opened import published_specs
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.modules.kernels import Kernels
from export.modules.kind import named_class
from export.modules.vision.base import TowerSpec, TowerStructure, pixels
from export.new_family_test import family_outside
from export.pipeline import export
from export.request import ExportRequest
from export.specs import ModelSpec
from export.stages import contracts
from parity_tests.check.verifier import PackageVerifier
from parity_tests.reference.checkpoint_side import open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import CONNECTOR, VISION, TensorContract
from runtime_py.errors import UnsupportedModelError
from targets.registry import target_named

NAME = "internlike"

TOWER_FILE = '''
from dataclasses import dataclass
from export.modules.vision.base import TowerSpec, TowerStructure, pixels
from export.specs import Activation

@dataclass(frozen=True)
class InternVitSpec(TowerSpec):
    """RMS norms, queries and keys normalised over all heads at once, and a learned scale on every branch (InternViT-6B)."""

    patch_size: int
    side: int
    norm_eps: float
    activation = Activation.GELU
    patch_bias = True
    module = "internlike.modules:InternVit"
    block = "internlike.blocks:InternVit"

    @property
    def structure(self):
        grid = (self.side, self.side)
        return TowerStructure(3 * self.patch_size**2, grid, special_tokens=1, final_norm=False, changed_heads=True)

    def inputs(self, dtype):
        return (pixels(dtype, self.structure.grid, self.patch_size),)
'''

MODULES_FILE = """
import torch
from torch import nn
from export.modules.kernels import Role
from export.modules.vision.transformer import PatchEmbedding, VisionMlp

class Attention(nn.Module):
    def __init__(self, name, spec, kernels):
        super().__init__()
        self.spec, self.kernels = spec, kernels
        self.qkv = kernels.linear(f"{name}.qkv", spec.width, 3 * spec.width, False, Role.VISION)
        self.q_norm, self.k_norm = (kernels.rms_norm(spec.width, 1e-6) for _ in "qk")
        self.out = kernels.linear(f"{name}.out", spec.width, spec.width, True, Role.VISION)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        shape = (x.shape[0], x.shape[1], self.spec.heads, self.spec.head_dim)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v))
        return self.out(self.kernels.full_attention(q, k, v).transpose(1, 2).reshape(x.shape))

class Block(nn.Module):
    def __init__(self, name, spec, kernels):
        super().__init__()
        self.norm1, self.norm2 = (kernels.rms_norm(spec.width, spec.norm_eps) for _ in "12")
        self.attention = Attention(f"{name}.attention", spec, kernels)
        self.mlp = VisionMlp(f"{name}.mlp", spec, kernels)
        self.scale1, self.scale2 = (nn.Parameter(torch.empty(spec.width)) for _ in "12")

    def forward(self, x):
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))

class InternVit(nn.Module):
    def __init__(self, spec, kernels, prefix="vision_encoder"):
        super().__init__()
        self.patch = PatchEmbedding(spec)
        self.class_token = nn.Parameter(torch.empty(1, spec.width))
        self.positions = nn.Parameter(torch.empty(spec.side**2 + 1, spec.width))
        self.blocks = nn.ModuleList(Block(f"{prefix}.blocks.{i}", spec, kernels) for i in range(spec.layers))

    def forward(self, pixel_values):
        patches = self.patch(pixel_values)
        first = self.class_token.expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]
"""

BLOCKS_FILE = """
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from export.backends.mlc.blocks.attention import full_attention
from export.backends.mlc.blocks.norms import RMSNorm
from export.backends.mlc.blocks.vision import PatchEmbedding, VisionMlp, cut_patches

class Attention(nn.Module):
    def __init__(self, name, spec, layers, most):
        self.spec, self.most = spec, most
        self.qkv = layers.linear(f"{name}.qkv", spec.width, 3 * spec.width, False)
        self.q_norm, self.k_norm = (RMSNorm(spec.width, 1e-6, layers.dtype) for _ in "qk")
        self.out = layers.linear(f"{name}.out", spec.width, spec.width, True)

    def forward(self, x):
        q, k, v = op.split(self.qkv(x), 3, axis=2)
        return self.out(full_attention(self.q_norm(q), self.k_norm(k), v, self.spec.heads, self.most))

class Block(nn.Module):
    def __init__(self, name, spec, layers, most):
        self.norm1, self.norm2 = (RMSNorm(spec.width, spec.norm_eps, layers.dtype) for _ in "12")
        self.attention = Attention(f"{name}.attention", spec, layers, most)
        self.mlp = VisionMlp(f"{name}.mlp", spec, layers)
        self.scale1, self.scale2 = (nn.Parameter((spec.width,), layers.dtype) for _ in "12")

    def forward(self, x):
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))

class InternVit(nn.Module):
    def __init__(self, spec, layers, most=0, prefix="vision_encoder"):
        self.spec, self.dtype = spec, layers.dtype
        self.patch = PatchEmbedding(spec, layers.dtype)
        self.class_token = nn.Parameter((1, spec.width), layers.dtype)
        self.positions = nn.Parameter((spec.side**2 + 1, spec.width), layers.dtype)
        self.blocks = nn.ModuleList([Block(f"{prefix}.blocks.{i}", spec, layers, most) for i in range(spec.layers)])

    def cut(self, image, rows, columns, picture):
        statistics = picture.mean, picture.deviation
        return cut_patches(image, rows, columns, self.spec.patch_size, self.dtype, statistics)

    def forward(self, patches, sides):
        first = op.reshape(self.class_token, (1, 1, self.spec.width))
        x = op.concat([first, self.patch(patches)], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return op.split(x, [1], axis=1)[1]
"""

FAMILY_FILE = """
from dataclasses import replace
from export.families.omnilmm_12b.family import OmniLMM12B
from export.families.tensors import PublishedTensors
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.decoders.llama_weights import llama_rules
from export.modules.rules import pair
from export.source.weight_map import compute, stack, take
from internlike.tower import InternVitSpec

TOWER = "model.vision_tower."

def tower_rules(spec):
    width, mlp, patch = spec.width, spec.mlp_width, spec.patch_size
    ours, theirs = "vision_encoder", f"{TOWER}embeddings"
    yield from pair(f"{ours}.patch", f"{theirs}.patch_embeddings.projection", (width, 3, patch, patch))
    for name, stored, rows in (("class_token", "cls_token", 1), ("positions", "position_embeddings", spec.side**2 + 1)):
        yield compute(f"{ours}.{name}", [(f"{theirs}.{stored}", (1, rows, width))], (rows, width), lambda table: table[0])
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"{TOWER}encoder.layer.{i}"
        parts = [(f"{theirs}.attention.{part}_proj.weight", (width, width)) for part in "qkv"]
        yield stack(f"{ours}.attention.qkv.weight", parts)
        for part in "qk":
            yield take(f"{ours}.attention.{part}_norm.weight", f"{theirs}.attention.{part}_norm.weight", (width,))
        yield from pair(f"{ours}.attention.out", f"{theirs}.attention.projection_layer", (width, width))
        for number, norm in (("1", "before"), ("2", "after")):
            yield take(f"{ours}.norm{number}.weight", f"{theirs}.layernorm_{norm}.weight", (width,))
            yield take(f"{ours}.scale{number}", f"{theirs}.lambda_{number}", (width,))
        yield from pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", (mlp, width))
        yield from pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", (width, mlp))

def rules(spec):
    return [
        *tower_rules(spec.vision),
        *resampler_rules(spec.connector, "model.resampler."),
        *llama_rules(spec.decoder),
    ]

class Internlike(OmniLMM12B):
    tensors = PublishedTensors(rules)

    def spec(self, config, source):
        whole = super().spec(config, source)
        eva = whole.vision
        sizes = (eva.width, eva.layers, eva.heads, eva.mlp_width, eva.patch_size, eva.grid[0])
        return replace(whole, vision=InternVitSpec(*sizes, norm_eps=1e-6))

FAMILY = Internlike()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The distribution, installed for this module; its package's name."""
    modules = {"tower": TOWER_FILE, "modules": MODULES_FILE, "blocks": BLOCKS_FILE, "family": FAMILY_FILE}
    with family_outside(NAME, "omnilmm-12b", modules, tmp_path_factory.mktemp("own_kind")) as name:
        yield name


@pytest.fixture(scope="module")
def checkpoint(package: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return synthesize(SynthesisRequest(package, "tiny", folder, "", "float32")).folder


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "fp32"), ("cpu", "int4"), pytest.param("android", "fp32", marks=pytest.mark.slow)],
)
def test_it_is_exported_and_agrees_with_the_reference(checkpoint: Path, tmp_path: Path, target: str, precision: str) -> None:
    """The export itself compares the package with the module, which the next test compares with transformers' class."""
    request = ExportRequest(str(checkpoint), target, precision=precision, output=tmp_path / "out", without_tokenizer=True)
    made = json.loads((export(request, PackageVerifier()) / "manifest.json").read_text())
    assert made["verification"]["verdict"] == "pass"
    assert made["contracts"][VISION]["inputs"][0]["shape"] == ["images", 3, 112, 112]
    assert made["contracts"][VISION]["outputs"][0]["shape"] == ["images", 64, 48]


def test_the_tower_equals_the_class_of_transformers(checkpoint: Path) -> None:
    internvl = pytest.importorskip("transformers.models.internvl.modeling_internvl")
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    opened = open_checkpoint(checkpoint)
    spec, source = opened.spec.vision, opened.weights.source
    config = InternVLVisionConfig(
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_width,
        image_size=112,
        patch_size=14,
        use_qk_norm=True,
        norm_type="rms_norm",
        use_mean_pooling=True,  # without a norm behind the last block
    )
    tower = internvl.InternVLVisionModel(config).eval()
    prefix = "model.vision_tower."
    stored = {name.removeprefix(prefix): source.read(name) for name in source.infos if name.startswith(prefix)}
    tower.load_state_dict(stored)
    drawn = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = tower(drawn).last_hidden_state[:, 1:].numpy()
    actual = TorchBackend(opened.spec, opened.weights).run(VISION, {"pixel_values": drawn.numpy()})["vision_features"]
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def spec_of(package: str, **changes: Any) -> TowerSpec:
    made: TowerSpec = importlib.import_module(f"{package}.tower").InternVitSpec(**changes)
    return made


def test_the_block_agrees_with_the_module(package: str) -> None:
    from tvm.relax.frontend import nn

    spec = spec_of(package, width=24, layers=2, heads=3, mlp_width=40, patch_size=4, side=3, norm_eps=1e-5)
    module = named_class(spec, spec.module)(spec, Kernels())
    weights, image = random_weights(module), published_specs()[0][1].image
    block = named_class(spec, spec.block)(spec, Layers({}, "float32"), 10)
    picture = {"pixels": nn.spec.Tensor([1, 3, 12, 12], "float32")}
    built = build(block, {"run": (lambda pixels: block(block.cut(pixels, 3, 3, image), {}), picture)}, weights)
    drawn = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
    assert_close(built("run", drawn), module(torch.from_numpy(drawn)))


def test_backends_ask_the_kind_and_not_a_list(package: str) -> None:
    own = spec_of(package, width=64, layers=2, heads=4, mlp_width=96, patch_size=14, side=32, norm_eps=1e-6)
    spec = with_tower(own)
    assert contracts(spec)[VISION].outputs[0].shape == ("images", 1024, 64)
    assert contracts(spec)[CONNECTOR].inputs[0].shape == ("images", 1024, 64)
    assert unsupported(spec, True) == [] and most_patches(spec, 4096) == 1025
    limits = target_named("server-gpu").limits
    assert [profile.name for profile in stage_profiles(spec, VISION, contracts(spec)[VISION], limits)] == ["fixed"]


@pytest.mark.slow
def test_the_plan_holds_what_the_compiler_needs(package: str) -> None:
    """Predicted from the structure alone: the block holds queries, keys and values apart, which takes less than together."""
    own = spec_of(package, width=3200, layers=2, heads=25, mlp_width=12800, patch_size=14, side=32, norm_eps=1e-6)
    spec = with_tower(own)
    spec = replace(spec, decoder=replace(spec.decoder, layers=2))
    needed = planned(spec)["image_embed"]
    assert needed <= image_activations(spec, HALF) <= 1.25 * needed


def with_tower(tower: TowerSpec) -> ModelSpec:
    """OmniLMM-12B at its published size with another tower."""
    spec = dict((family.name, spec) for family, spec in published_specs())["omnilmm-12b"]
    return replace(spec, vision=tower, connector=replace(spec.connector, vision_width=tower.width))


@dataclass(frozen=True)
class Bare(TowerSpec):
    """One that names what is not there."""

    module = "json:NoSuchClass"

    @property
    def structure(self) -> TowerStructure:
        return TowerStructure(3)

    def inputs(self, dtype: str) -> tuple[TensorContract, ...]:
        return (pixels(dtype, self.structure.grid, 1),)


def test_what_a_kind_leaves_out_is_said_in_a_sentence() -> None:
    from export.backends.mlc.backend import MlcBackend

    spec, android = with_tower(Bare(64, 2, 4, 96)), target_named("android")
    with pytest.raises(UnsupportedModelError, match="its vision tower, Bare, has no Relax block"):
        MlcBackend().refuse(spec, BuildOptions(android, "int4", android.limits))
    assert "no kernels for its vision tower, Bare" in written.unsupported(spec)
    with pytest.raises(UnsupportedModelError, match="Bare names 'json:NoSuchClass'"):
        named_class(spec.vision, spec.vision.module)
    assert contracts(spec)[VISION].outputs[0].shape == ("images", "vision_tokens", 64)
