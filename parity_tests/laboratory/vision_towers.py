"""Vision towers of published shapes with random weights: their specs, pictures, graphs by precision, and libraries.

Random weights keep a deep tower's activations finite, and say nothing of quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from runtime_py.contracts import VISION
from runtime_py.preprocess.patches import rotary_angles

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import ModelSpec
    from runtime_py.backends.vision_library import VisionLibrary

PLAIN = "plain fp32"
"""A precision: the tower traced with PyTorch's own operators to standard ONNX, which other runtimes read too."""

ROUNDED = "int8"
"""The precision that a library computes in."""

PLAIN_OPSET = 20
"""Scaled dot-product attention is written in products and a softmax, which every reader knows."""

SIGLIP, QWEN2 = "siglip", "qwen2-vl"
"""SigLIP-so400m (27 blocks), with positions that are added, and Qwen2-VL's (32), with rotary ones."""
WIDTH, HEADS, MLP, PATCH = 1152, 16, 4304, 14
"""Of the first; both cut pictures into squares of `PATCH`."""


class RandomWeights:
    """A WeightProvider of normal numbers that keep a deep tower's activations finite; norms are 1, vectors small."""

    def __init__(self, spec: ModelSpec) -> None:
        from export.modules.build import parameter_shapes

        self.shapes = parameter_shapes(spec)

    def shape(self, target: str) -> tuple[int, ...]:
        return self.shapes[target]

    def tensor(self, target: str) -> Tensor:
        import torch

        shape = self.shapes[target]
        if ".norm" in target and target.endswith("weight"):
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(sum(target.encode()))
        deviation = int(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.02
        return torch.randn(shape, generator=generator) * deviation

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.tensor(target)[start:stop]


def tower(kind: str, side: int, layers: int) -> ModelSpec:
    """A model with a tower of this many layers for pictures of ``side`` pixels."""
    from export.checkpoint.opened import published_specs
    from export.modules.vision.specs import PositionKind, RotaryVisionSpec, VisionSpec

    family = QWEN2 if kind == QWEN2 else "minicpm-v"
    spec = next(made for each, made in published_specs() if each.name == family)
    vision = replace(spec.vision, layers=layers)
    if kind == QWEN2:
        assert isinstance(vision, RotaryVisionSpec) and vision.patch_values == 3 * 2 * PATCH**2
    else:
        assert isinstance(vision, VisionSpec)
        grid = side // PATCH
        vision = replace(vision, width=WIDTH, heads=HEADS, mlp_width=MLP, patch_size=PATCH)
        vision = replace(vision, positions=PositionKind.FIXED, native_grid=grid, grid=(grid, grid))
    return replace(spec, vision=vision, decoder=replace(spec.decoder, layers=1))


def pictures(spec: ModelSpec, side: int, count: int) -> dict[str, np.ndarray]:
    """Random square pictures of ``side`` pixels, or what is a whole number of patches of them, as the tower takes them."""
    from export.modules.vision.specs import RotaryVisionSpec

    drawn, vision, grid = np.random.default_rng(0), spec.vision, side // PATCH
    if not isinstance(vision, RotaryVisionSpec):
        return {"pixel_values": drawn.standard_normal((count, 3, grid * PATCH, grid * PATCH)).astype(np.float32)}
    grid = grid // vision.merge * vision.merge
    pixels = drawn.standard_normal((count, grid * grid, vision.patch_values)).astype(np.float32)
    return {"pixel_values": pixels, "rotary_angles": rotary_angles(grid, grid, vision.merge, vision.head_dim)}


def spread(spec: ModelSpec, percent: int, form: str) -> dict[str, str]:
    """Every so many layers behind the first block in a form of `export.backends.onnx.record.FINER`."""
    from export.backends.onnx.choices import rounds_finely
    from export.modules.build import layer_shapes

    names = [layer.name for layer in layer_shapes(spec) if layer.role == "vision" and not rounds_finely(layer.name)]
    count = max(1, round(len(names) * percent / 100))
    return {names[place * len(names) // count]: form for place in range(count)}


def write(spec: ModelSpec, precision: str, folder: Path, forms: Mapping[str, str] = MappingProxyType({})) -> Path:
    """The tower's graph under one vision precision, or traced with plain operators for `PLAIN`.

    Args:
        forms: of layers in another one, whose graph has a file of its own.
    """
    from export.backends.base import BuildOptions
    from export.backends.onnx.backend import OnnxBackend
    from export.backends.onnx.stage_graphs import chosen_for, stage_model
    from export.graphs.stage_values import StageWeights
    from export.graphs.trace import trace_stage
    from export.graphs.writer import write_stage
    from export.modules.kernels import Kernels
    from export.quantisation.choice import widened
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS
    from runtime_py.backends.records import ONNX
    from targets.registry import target_named

    kinds = "".join(f"_{len(forms)}_{form}" for form in sorted(set(forms.values())))
    path = folder / f"{precision.replace(' ', '_')}{kinds}.onnx"
    if path.is_file():
        return path
    target = target_named("cpu")
    plain = precision == PLAIN
    options = BuildOptions(target, "int4", target.limits, {"vision_precision": "fp32" if plain else precision})
    assignments = widened(ONNX.name, OnnxBackend().assignments(spec, options), forms)
    if plain:
        model = trace_stage(spec, VISION, Kernels(), opset=PLAIN_OPSET)
    else:
        model = stage_model(spec, VISION, chosen_for(spec, options), assignments)
    weights = RandomWeights(spec)
    source = StageWeights(VISION, weights, RoundToNearest(weights, assignments, GRIDS), assignments)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_stage(model, source, path, lambda *_: None)
    return path


def opened_library(
    spec: ModelSpec, path: Path, threads: int, chosen: Mapping[str, str] = MappingProxyType({})
) -> VisionLibrary:
    """The tower of an ``int8`` graph as `runtime_py.backends.ort` runs it where a package has a vision library.

    Args:
        chosen: of `export.backends.onnx.vision_library.panel_tower.PanelTower`.

    Raises:
        MachineError: TVM or a linker is not installed, or the library does not run on this processor.
    """
    from export.backends.onnx.vision_library.written import FILES
    from export.stages import contracts
    from runtime_py.backends.records import ONNX, VISION_LIBRARY
    from runtime_py.backends.vision_library import VisionLibrary

    folder = path.parent.parent
    if not (folder / FILES.index(path.parent.name)).is_file():
        FILES.write(folder, path.parent.name, (spec.vision, path, dict(chosen)), lambda *_: None)
    manifest = {
        "backends": {ONNX.name: {VISION_LIBRARY: FILES.block(path.parent.name)}},
        "contracts": {VISION: contracts(spec)[VISION].to_json()},
        "files": [{"path": each.relative_to(folder).as_posix()} for each in path.parent.iterdir()],
    }
    return VisionLibrary(folder, manifest, threads)
