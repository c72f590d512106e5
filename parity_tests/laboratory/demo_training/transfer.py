"""Start a stage of one family's demo from the delivered demo of another: layers as they are, token rows by their text.

What a decoder learns about questions and answers is the same in every family; what differs (prompt, tokens, adapters, image
rows) is learnt on top. Deltas of adapters begin at nothing; of visual experts a plain decoder takes the language set; scales
that only one decoder has go into its matrices. A vision tower or a connector takes over what has the same name and shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint.opened import open_folder
from export.demo.recipes.base import Tensors
from export.source.tensor_source import TensorSource
from export.source.weight_map import Rule, WeightMap
from export.specs import DecoderSpec, ModelSpec
from runtime_py import tokenizer as tokenizers
from runtime_py.contracts import DECODER
from runtime_py.tokenizer import Tokenizer

VARIANTS = (".base", ".language", ".vision")
"""Path segments by which adapted decoders call what plain ones have without."""

TABLES = ("embed_tokens.table.weight", "decoder.head.weight")


def start_from(
    folder: Path, stage: str, tensors: Tensors, spec: ModelSpec, rules: Mapping[str, Rule], tokenizer: Tokenizer
) -> None:
    """Overwrite published ``tensors`` of a stage (of the embedding too when it is the decoder) by those of a demo.

    Raises:
        ValueError: the two decoders differ in width, depth, MLP or heads.
    """
    opened = open_folder(folder)
    other, weights = opened.spec, opened.weights
    assert weights is not None
    if stage != DECODER:
        _start_same(stage, weights, tensors, rules)
        return
    if _sizes(other.decoder) != _sizes(spec.decoder) or spec.decoder.kv_heads % other.decoder.kv_heads:
        raise ValueError(f"decoder of {_sizes(spec.decoder)} cannot start from one of {_sizes(other.decoder)}")
    given: dict[str, str] = {}
    for target in weights.rules:
        if target.startswith("decoder.") or target in TABLES:
            given.setdefault(_plain(target), target)
            given[target] = target
    renamed = _same_text(tokenizer, tokenizers.load(folder))
    for target, rule in rules.items():
        name = given.get(target) or given.get(_plain(target))
        if name is None or ".gates." in target or "lora_" in target:
            continue
        value = weights.tensor(name).float() * _factor(target, other, spec)
        if target in TABLES:
            value = _token_rows(value, renamed, _assembled(rule, tensors))
        elif "qkv" in target:
            value = _for_heads(value, other.decoder, spec.decoder)
        if value.shape == rule.shape:
            _assign(rule, value, tensors)


def _start_same(stage: str, weights: WeightMap, tensors: Tensors, rules: Mapping[str, Rule]) -> None:
    for target, rule in rules.items():
        if not target.startswith(stage) or target not in weights.rules:
            continue
        if not _reorders(rule):
            _start_stored(rule, weights.rules[target], weights.source, tensors)
            continue
        value = weights.tensor(target).float()
        if value.ndim == 4 and len(rule.shape) == 2:
            value = value.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(len(value), -1) / 2
        if value.shape == rule.shape:
            _assign(rule, value, tensors)


def _start_stored(rule: Rule, given: Rule, source: TensorSource, tensors: Tensors) -> None:
    """Of a parameter that is computed, take what it is computed from, where both store the same."""
    if [tuple(shape) for shape in rule.source_shapes] == [tuple(shape) for shape in given.source_shapes]:
        for mine, theirs in zip(rule.sources, given.sources, strict=True):
            tensors[mine].copy_(source.read(theirs))


def _factor(target: str, given: ModelSpec, wanted: ModelSpec) -> float:
    """What a matrix is multiplied by so that it does the same under the other decoder's scales."""
    if target == "embed_tokens.table.weight":
        return given.embed.scale / wanted.embed.scale
    if target == "decoder.head.weight":
        return wanted.decoder.logit_divisor / given.decoder.logit_divisor
    ends_branch = ".attention.out." in target or ".mlp.down." in target
    return given.decoder.residual_scale / wanted.decoder.residual_scale if ends_branch else 1.0


def _plain(target: str) -> str:
    for segment in VARIANTS:
        target = target.replace(f"{segment}.", ".")
    return target


def _sizes(spec: DecoderSpec) -> tuple[int, ...]:
    return spec.hidden, spec.layers, spec.heads, spec.head_dim, spec.mlp_width


def _for_heads(value: Tensor, given: DecoderSpec, wanted: DecoderSpec) -> Tensor:
    """q, k, v rows with every key and value head repeated for the query heads that shared it."""
    repeats, query, key = wanted.kv_heads // given.kv_heads, given.heads * given.head_dim, given.kv_heads * given.head_dim
    q, k, v = value.split([query, key, key])

    def repeated(rows: Tensor) -> Tensor:
        heads = rows.reshape(given.kv_heads, given.head_dim, *rows.shape[1:])
        return heads.repeat_interleave(repeats, dim=0).reshape(-1, *rows.shape[1:])

    return torch.cat([q, repeated(k), repeated(v)])


def _same_text(ours: Tokenizer, theirs: Tokenizer) -> list[list[int]]:
    """For every id of ours the ids of theirs that say the same; none for control tokens.

    Where a byte and a word say the same, the word, which has the higher id, is what texts are written with.
    """
    whole = {piece: index for index, piece in enumerate(theirs.pieces) if piece}
    pairs = []
    for piece in ours.pieces:
        if piece in whole or not piece:
            pairs.append([whole[piece]] if piece else [])
            continue
        text = piece.decode("utf-8", "ignore")
        pairs.append(theirs.encode(text) if text.encode() == piece else [])
    return pairs


def _token_rows(value: Tensor, renamed: list[list[int]], rows: Tensor) -> Tensor:
    """``rows`` with those of a known text replaced by the mean of the given rows that say it."""
    rows = rows.clone()
    for index, ids in enumerate(renamed[: len(rows)]):
        if ids:
            rows[index] = value[ids].mean(0)
    return rows


def _assembled(rule: Rule, tensors: Tensors) -> Tensor:
    return torch.cat([tensors[name].float() for name in rule.sources])


def _assign(rule: Rule, value: Tensor, tensors: Tensors) -> None:
    """Fill a rule's published tensors so that it gives ``value``; low-rank factors are left, the upper being zero."""
    if rule.parts:
        for part, rows in zip(rule.parts, value.split([part.shape[0] for part in rule.parts]), strict=True):
            _assign(part, rows, tensors)
    elif rule.row_join is not None:
        tensors[rule.sources[0]].copy_(value)
    elif rule.join is not None:
        if len(rule.sources) == 1:
            tensors[rule.sources[0]].view(-1)[_taken(rule.join, rule.source_shapes[0])] = value.reshape(-1)
    else:
        for name, rows in zip(rule.sources, value.split([shape[0] for shape in rule.source_shapes]), strict=True):
            tensors[name].copy_(rows)


def _reorders(rule: Rule) -> bool:
    """Whether a rule takes stored values as they are; a resized table does not."""
    if rule.join is None:
        return True
    if len(rule.sources) > 1:
        return False
    shape = torch.Size(rule.source_shapes[0])
    places: Tensor = rule.join(torch.arange(shape.numel(), dtype=torch.float64).view(shape))
    return bool((places == places.round()).all()) and float(places.max()) < shape.numel()


def _taken(join: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
    """Where a join that only reorders takes each value of its result from."""
    places: Tensor = join(torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape))
    return places.reshape(-1).long()
