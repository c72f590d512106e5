"""The vision tower and the resampler against export.modules, in every shape the specs can ask for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tvm.relax.frontend import nn

from export.backends.mlc.blocks.conftest import assert_close, build, random_weights
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.projections import MlpConnector
from export.backends.mlc.blocks.resampler import Resampler
from export.backends.mlc.blocks.vision import VisionTransformer, cut_patches
from export.modules.connectors.projections import MlpConnector as TorchMlpConnector
from export.modules.connectors.resampler import Resampler as TorchResampler
from export.modules.connectors.specs import MlpConnectorSpec, ResamplerSpec
from export.modules.kernels import Kernels
from export.modules.vision.specs import NormPlacement, PositionKind, VisionSpec
from export.modules.vision.transformer import VisionTransformer as TorchVision
from export.specs import Activation

BASE = VisionSpec(
    width=24,
    layers=2,
    heads=3,
    mlp_width=40,
    patch_size=4,
    activation=Activation.GELU,
    norm_placement=NormPlacement.PRE,
    norm_eps=1e-6,
    positions=PositionKind.FIXED,
    native_grid=3,
    grid=(2, 3),
)
HALVES = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and deviations per channel."""
VARIANTS = {
    "siglip": {},
    "clip": {"class_token": True, "input_norm": True, "final_norm": False, "activation": Activation.QUICK_GELU},
    "eva": {"norm_placement": NormPlacement.BRANCH_OUTPUT, "class_token": True, "emit_class_token": True},
    "tanh": {"activation": Activation.GELU_TANH, "patch_bias": False},
    "silu": {"activation": Activation.SILU},
    "any grid": {"positions": PositionKind.RESAMPLED, "grid": None},
}


class Tower(nn.Module):
    """The block with the patch cutting in front, as the library calls it."""

    def __init__(self, spec: VisionSpec) -> None:
        self.tower = VisionTransformer(spec, Layers({}, "float32"))
        self.spec = spec

    def fixed(self, pixels):
        return self.tower(cut_patches(pixels, *self.spec.grid, self.spec.patch_size, "float32", HALVES), {})

    def resampled(self, pixels, row_weights, column_weights):
        sides = {"row_weights": row_weights, "column_weights": column_weights}
        rows, columns = row_weights.shape[0], column_weights.shape[0]
        patches = cut_patches(pixels, rows, columns, self.spec.patch_size, "float32", HALVES)
        return self.tower(patches, sides)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tower_agrees_with_pytorch(rng, variant):
    spec = dataclasses.replace(BASE, **VARIANTS[variant])
    reference = TorchVision(spec, Kernels())
    weights = {f"tower.{name}": array for name, array in random_weights(reference).items()}
    block = Tower(spec)
    if spec.grid is None:
        arguments = {
            "pixels": nn.spec.Tensor([1, 3, "height", "width"], "float32"),
            "row_weights": nn.spec.Tensor(["rows", 3], "float32"),
            "column_weights": nn.spec.Tensor(["columns", 3], "float32"),
        }
        built = build(block, {"run": (block.resampled, arguments)}, weights)
        grids = [(2, 5), (4, 1)]
    else:
        shape = [1, 3, 4 * spec.grid[0], 4 * spec.grid[1]]
        built = build(block, {"run": (block.fixed, {"pixels": nn.spec.Tensor(shape, "float32")})}, weights)
        grids = [spec.grid]
    for rows, columns in grids:
        inputs = [rng.standard_normal((1, 3, 4 * rows, 4 * columns)).astype(np.float32)]
        if spec.grid is None:
            inputs += [rng.standard_normal((size, 3)).astype(np.float32) for size in (rows, columns)]
        assert_close(built("run", *inputs), reference(*map(torch.from_numpy, inputs)))


def test_raw_pixels_are_normalised_like_the_processor(rng):
    class Cut(nn.Module):
        def run(self, image):
            return cut_patches(image, 2, 3, 4, "float32", CLIP)

    block = Cut()
    picture = rng.integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
    built = build(block, {"run": (block.run, {"image": nn.spec.Tensor([1, 8, 12, 3], "uint8")})}, {})
    mean, deviation = (np.array(values, np.float32) for values in CLIP)
    pixels = ((picture.astype(np.float32) / 255.0 - mean) / deviation).transpose(0, 3, 1, 2)
    expected = pixels.reshape(1, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(1, 6, 48)
    assert_close(built("run", picture), expected, bound=1e-7)


@pytest.mark.parametrize(("fixed", "project"), [(6, True), (None, True), (None, False)])
def test_the_resampler_agrees_with_pytorch(rng, fixed, project):
    spec = ResamplerSpec(24 if project else 32, 32, 5, 2, 1e-6, fixed, project)
    reference = TorchResampler(spec, Kernels())
    weights = random_weights(reference)
    block = Resampler(spec, Layers({}, "float32"))
    tokens = fixed or "tokens"
    arguments = {"features": nn.spec.Tensor([1, tokens, spec.vision_width], "float32")}
    inputs = [rng.standard_normal((1, 6, spec.vision_width)).astype(np.float32)]
    if fixed is None:
        arguments["key_positions"] = nn.spec.Tensor([tokens, 32], "float32")
        inputs.append(rng.standard_normal((6, 32)).astype(np.float32))

    def with_positions(features, key_positions):
        return block(features, {"key_positions": key_positions})

    def alone(features):
        return block(features, {})

    run = alone if fixed else with_positions
    built = build(block, {"run": (run, arguments)}, weights)
    assert_close(built("run", *inputs), reference(*map(torch.from_numpy, inputs)))


@pytest.mark.parametrize("norm_eps", [1e-5, None])
def test_mlp_connector_with_and_without_its_norm(rng: np.random.Generator, norm_eps: float | None) -> None:
    spec = MlpConnectorSpec(24, 32, 6, norm_eps)
    reference = TorchMlpConnector(spec, Kernels())
    assert ("norm.weight" in dict(reference.named_parameters())) == (norm_eps is not None)
    weights = random_weights(reference)
    block = MlpConnector(spec, Layers({}, "float32"))
    methods = {"run": (lambda features: block(features, {}), {"features": nn.spec.Tensor([1, 6, 24], "float32")})}
    features = rng.standard_normal((1, 6, 24)).astype(np.float32)
    assert_close(build(block, methods, weights)("run", features), reference(torch.from_numpy(features)))
