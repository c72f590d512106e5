"""A model held as its published tensors: what is trained is what is stored.

Every canonical parameter is derived from the published tensors by the family's own weight rules, inside autograd, and
the stages of `export.modules` run on the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from export.demo.recipes.base import Recipe, Tensors
from export.demo.routing import gate_whole_batches
from export.families.base import Family
from export.modules.build import layer_shapes, meta_stages, parameter_shapes
from export.modules.kernels import Embedding, LayerNorm, RMSNorm
from export.source.tensor_source import TensorInfo
from export.source.weight_map import Rule
from export.specs import ModelSpec
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION

Cache = list[tuple[Tensor, Tensor]]
Arrange = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class MemorySource:
    """A `TensorSource` over tensors in memory."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), Path("memory"), t.nbytes)
            for name, t in self.tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        tensor = self.tensors[name]
        return (tensor[start:stop] if tensor.ndim else tensor).clone()


def initial_tensors(recipe: Recipe, family: Family, seed: int) -> tuple[ModelSpec, Tensors]:
    """The spec of a recipe's config, and published tensors to start training from.

    Norms start at one, biases at zero, linear layers at variance 1 / inputs, the embedding so that its scaled rows have
    unit variance; then the recipe has its say.
    """
    known = MemorySource({name: torch.empty(shape) for name, shape in recipe.known.items()})
    spec = family.spec(recipe.config, known)
    rules = family.weight_map(spec, known).rules
    modules = {f"{stage}.{path}": m for stage, top in meta_stages(spec).items() for path, m in top.named_modules()}
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for rule in rules.values():
        owner = modules.get(rule.target.rpartition(".")[0])
        for name, shape in zip(rule.sources, rule.source_shapes, strict=True):
            if name not in tensors:
                tensors[name] = _initial(name, shape, owner, spec, generator)
    with torch.no_grad():
        recipe.initialise(tensors, spec)
    family.weight_map(spec, MemorySource(tensors)).check(parameter_shapes(spec))
    return spec, tensors


def _initial(
    name: str, shape: tuple[int, ...], owner: nn.Module | None, spec: ModelSpec, generator: torch.Generator
) -> Tensor:
    if isinstance(owner, LayerNorm | RMSNorm) or len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    if isinstance(owner, Embedding):
        return torch.randn(shape, generator=generator) / spec.embed.scale
    return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5


def evaluated(rule: Rule, tensors: Mapping[str, Tensor]) -> Tensor:
    """The whole parameter of a rule of any kind, float32, inside autograd."""
    if rule.parts:
        return torch.cat([evaluated(part, tensors) for part in rule.parts])
    sources = [tensors[name].float() for name in rule.sources]
    join = rule.join or rule.row_join
    if join is not None:
        return join(*sources)
    return sources[0] if len(sources) == 1 else torch.cat(sources)


class Stages:
    """The four stages on derived parameters.

    Attributes:
        arrange: the processor's ``arrange``, when it has one.
        routed: the decoder wants ``gate_input`` (batch, tokens or 1, hidden), see `export.demo.routing`.
    """

    def __init__(self, spec: ModelSpec, rules: Mapping[str, Rule]) -> None:
        self.spec, self.rules = spec, dict(rules)
        self.arrange: Arrange | None = None
        self.modules = meta_stages(spec)
        self.routed = spec.decoder.layer_kind.reads_embedding
        gate_whole_batches(self.modules[DECODER])
        self.layers = layer_shapes(spec)
        self.parameters: dict[str, dict[str, Tensor]] = {}

    def derive(
        self, tensors: Mapping[str, Tensor], rounded: Iterable[str] = (), rounding: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Join published tensors to canonical parameters; those named in ``rounded`` pass through ``rounding``."""
        self.parameters = {stage: {} for stage in self.modules}
        chosen = frozenset(rounded)
        for rule in self.rules.values():
            value = evaluated(rule, tensors)
            if rounding is not None and rule.target in chosen:
                value = rounding(value)
            stage, _, path = rule.target.partition(".")
            self.parameters[stage][path] = value

    def run(self, stage: str, *arguments: object, **named: object):
        return functional_call(self.modules[stage], self.parameters[stage], arguments, named)

    def see(self, vision: Mapping[str, Tensor], connector: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Vision features and image features of a batch of pictures."""
        features = self.run(VISION, **vision)
        return features, self.run(CONNECTOR, features, **connector)

    def embed(self, ids: Tensor) -> Tensor:
        return self.run(EMBED, ids)

    def decode(
        self, embeds: Tensor, extras: Mapping[str, Tensor], past: Cache | None, outputs: Tensor
    ) -> tuple[Tensor, Cache]:
        """Run the decoder over new positions; ``extras`` are its inputs beside the embeddings, mask and cache.

        Raises:
            ValueError: dialogues of one batch route their tokens differently.
        """
        extras = self._arranged(extras)
        batch, tokens = embeds.shape[:2]
        if past is None:
            decoder = self.spec.decoder
            empty = embeds.new_zeros(batch, decoder.kv_heads, 0, decoder.head_dim)
            past = [(empty, empty)] * decoder.layers
        mask = torch.ones(batch, past[0][0].shape[2] + tokens, dtype=torch.int64)
        logits, cache = self.run(
            DECODER, embeds, attention_mask=mask, logit_positions=outputs, past_key_values=past, **extras
        )
        return logits, cache

    def _arranged(self, extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks among ``extras``, which all dialogues share, as the decoder's inputs; the rest as it is."""
        masks = {name: value for name, value in extras.items() if value.dtype == torch.bool}
        rest = {name: value for name, value in extras.items() if name not in masks}
        if not masks:
            return rest
        if self.arrange is None or any(not torch.equal(mask, mask[:1].expand_as(mask)) for mask in masks.values()):
            raise ValueError(f"masks {sorted(masks)} differ within a batch, or nothing arranges them")
        made = self.arrange({name: mask[:1].numpy() for name, mask in masks.items()})
        return rest | {name: torch.from_numpy(value) for name, value in made.items()}


def selected(cache: Cache, rows: Sequence[int] | Tensor) -> Cache:
    """The cache of some rows, in that order; a row may come more than once."""
    index = torch.as_tensor(rows)
    return [(key.index_select(0, index), value.index_select(0, index)) for key, value in cache]
