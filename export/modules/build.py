"""From a spec to PyTorch stages, and to the list of their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from export.modules.decoders.llama import TokenEmbedding
from export.modules.kernels import Embedding, Kernels, Linear, Role
from export.modules.kind import named_class
from export.quantisation.spec import LayerShape
from export.specs import ModelSpec, StageSpecs
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION

EMBEDDING: Literal["embedding"] = "embedding"
"""The role of an embedding table."""


def build_stage(spec: ModelSpec | StageSpecs, stage: str, kernels: Kernels) -> nn.Module:
    """One stage with uninitialised parameters; wrap the call in ``torch.device("meta")`` or a fake mode for none."""
    built: nn.Module
    if stage in (VISION, CONNECTOR):
        part = spec.vision if stage == VISION else spec.connector
        built = named_class(part, part.module)(part, kernels)
        return built
    if stage == EMBED:
        return TokenEmbedding(spec.embed.vocabulary, spec.embed.width, spec.embed.scale, kernels)
    if stage == DECODER:
        kind = spec.decoder.layer_kind
        built = named_class(kind, kind.module)(spec.decoder, kernels)
        return built
    raise ValueError(f"no stage named {stage!r}; stages are {', '.join(STAGES)}")


def meta_stages(spec: ModelSpec | StageSpecs) -> dict[str, nn.Module]:
    """All stages on the meta device: structure and shapes, no memory."""
    with torch.device("meta"):
        return {stage: build_stage(spec, stage, Kernels()) for stage in STAGES}


@dataclass(frozen=True)
class ModuleShapes:
    """One module that has parameters of its own.

    Attributes:
        name: canonical path (``stage.path``).
        role: of a linear layer or an embedding table, else None.
        parameters: name within the module to shape, in the module's order.
    """

    name: str
    role: Role | Literal["embedding"] | None
    parameters: tuple[tuple[str, tuple[int, ...]], ...]


@lru_cache(maxsize=4)
def _module_shapes(stages: StageSpecs) -> Mapping[str, tuple[ModuleShapes, ...]]:
    """The modules of every stage that have parameters, in the order in which a stage lists them.

    Kept for the last few models: one export asks some ten times, and a large model has thousands of modules.
    """
    shapes = {}
    for stage, top in meta_stages(stages).items():
        modules = []
        for path, module in top.named_modules():
            own = tuple((name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False))
            role = module.role if isinstance(module, Linear) else EMBEDDING if isinstance(module, Embedding) else None
            if own:
                modules.append(ModuleShapes(".".join(filter(None, (stage, path))), role, own))
        shapes[stage] = tuple(modules)
    return MappingProxyType(shapes)


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Canonical name (``stage.path``) to shape of every parameter of every stage."""
    modules = (module for stage in _module_shapes(spec.stages).values() for module in stage)
    return {f"{module.name}.{name}": shape for module in modules for name, shape in module.parameters}


def parameter_count(spec: ModelSpec) -> int:
    """Values that all parameters of a model hold together."""
    return sum(math.prod(shape) for shape in parameter_shapes(spec).values())


def layer_shapes(spec: ModelSpec) -> list[LayerShape]:
    """Every matrix that a plan may quantise: linear layers and the embedding table."""
    modules = (module for stage in _module_shapes(spec.stages).values() for module in stage if module.role)
    return [LayerShape(module.name, str(module.role), *dict(module.parameters)["weight"]) for module in modules]


def stored_modules(spec: ModelSpec, stage: str, kernels: Kernels) -> Iterator[tuple[str, nn.Module]]:
    """What a stage built with ``kernels`` stores, layer by layer and without building the stage.

    Yields:
        path within the stage, and a module on the meta device with the parameters that lie there: the layer that
        ``kernels`` makes where the stage has a linear layer or an embedding table, else the plain parameters.
    """
    for module in _module_shapes(spec.stages)[stage]:
        with torch.device("meta"):
            yield module.name.removeprefix(stage).removeprefix("."), _stored(module, kernels)


def _stored(module: ModuleShapes, kernels: Kernels) -> nn.Module:
    shapes = dict(module.parameters)
    if isinstance(module.role, Role):
        rows, columns = shapes["weight"]
        return kernels.linear(module.name, columns, rows, "bias" in shapes, module.role)
    if module.role is not None:
        return kernels.embedding(module.name, *shapes["weight"])
    plain = nn.Module()
    for name, shape in shapes.items():
        plain.register_parameter(name, nn.Parameter(torch.empty(shape)))
    return plain
