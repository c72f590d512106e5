"""The lists of parameters agree with the stages they stand for, whatever the kernels, and a model is built for them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import Module

from export.backends.onnx.kernels import KernelChoices, OrtKernels
from export.backends.tensorrt.kernels import TrtKernels
from export.checkpoint.opened import published_specs
from export.modules import build
from export.modules.build import build_stage, layer_shapes, meta_stages, parameter_shapes, stored_modules
from export.modules.kernels import Kernels, Linear
from export.quantisation.spec import Assignment, Storage
from export.specs import ModelSpec
from runtime_py.contracts import STAGES

SPECS = {family.name: spec for family, spec in published_specs()}


@pytest.fixture
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """A published model with two blocks a tower, so that it builds in no time."""
    full = SPECS[request.param]
    return replace(full, vision=replace(full.vision, layers=2), decoder=replace(full.decoder, layers=2))


def kernels_of(spec: ModelSpec) -> Iterator[Kernels]:
    """Kernels that leave layers alone, halve them, and pack those that a grid fits."""
    halves = {layer.name: Assignment(layer, Storage.FP16) for layer in layer_shapes(spec)}
    packed = {
        layer.name: Assignment(layer, Storage.INT4, "ort_int4_asym_b32")
        for layer in layer_shapes(spec)
        if layer.columns % 32 == 0 and layer.role != "embedding"
    }
    yield Kernels()
    yield OrtKernels(halves, KernelChoices())
    yield OrtKernels(halves | packed, KernelChoices())
    yield TrtKernels({}, 128)


@pytest.mark.parametrize("spec", SPECS, indirect=True)
def test_what_is_stored_is_what_a_built_stage_has(spec: ModelSpec) -> None:
    for kernels in kernels_of(spec):
        for stage in STAGES:
            with torch.device("meta"):
                built = build_stage(spec, stage, kernels)
            wanted = [(name, p.dtype, p.shape) for name, p in built.named_parameters()]
            actual = [
                (".".join(filter(None, (path, name))), p.dtype, p.shape)
                for path, module in stored_modules(spec, stage, kernels)
                for name, p in module.named_parameters()
            ]
            assert actual == wanted, (stage, type(kernels).__name__)


@pytest.mark.parametrize("spec", SPECS, indirect=True)
def test_the_lists_are_those_of_the_modules(spec: ModelSpec) -> None:
    stages = meta_stages(spec)
    assert parameter_shapes(spec) == {
        f"{stage}.{name}": tuple(p.shape) for stage, module in stages.items() for name, p in module.named_parameters()
    }
    linear = [f"{stage}.{n}" for stage, module in stages.items() for n, m in module.named_modules() if isinstance(m, Linear)]
    assert [layer.name for layer in layer_shapes(spec) if layer.role != "embedding"] == linear


@pytest.mark.parametrize("spec", ["minicpm-v"], indirect=True)
def test_a_model_is_built_once_for_all_lists(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def watched(spec: ModelSpec, stage: str, kernels: Kernels) -> Module:
        calls.append(stage)
        return build_stage(spec, stage, kernels)

    monkeypatch.setattr(build, "build_stage", watched)
    spec, other = (replace(spec, decoder=replace(spec.decoder, layers=layers)) for layers in (3, 4))
    for asked in (spec, spec, replace(spec, runtime={}), other, other):
        parameter_shapes(asked).clear()  # what is handed out is the caller's own
        assert layer_shapes(asked)
    assert calls == [*STAGES, *STAGES]
