"""Published tensor names of Awaker2.5-VL, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from export.families.qwen2_vl.weights import BUFFERS, image_rules
from export.families.tensors import PublishedTensors
from export.modules.decoders.specs import RoutedLora
from export.modules.rules import pair, side_by_side, with_low_rank
from export.source.weight_map import Rule, stack, stack_rules, take
from export.specs import DecoderSpec, ModelSpec

PREFIX = "base_model.model."
"""Stands before every key of the published file."""


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.decoder.adapter, RoutedLora)
    return [*image_rules(spec, PREFIX), *_adapted(spec.decoder, spec.decoder.adapter)]


def _adapted(spec: DecoderSpec, adapter: RoutedLora) -> Iterator[Rule]:
    hidden, mlp, rank = spec.hidden, spec.mlp_width, adapter.rank
    rows = {"q": spec.heads * spec.head_dim, "k": spec.kv_heads * spec.head_dim, "v": spec.kv_heads * spec.head_dim}
    table = (spec.vocabulary, hidden)
    embedding = f"{PREFIX}model.embed_tokens.weight"
    yield take("embed_tokens.table.weight", embedding, table)
    for i in range(spec.layers):
        ours, theirs = f"decoder.layers.{i}", f"{PREFIX}model.layers.{i}"
        yield take(f"{ours}.input_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
        merged = []
        for name, count in rows.items():
            stem = f"{theirs}.self_attn.{name}_proj"
            names = (f"{stem}.weight", f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight")
            merged.append(with_low_rank(stem, *names, (count, hidden), rank, adapter.scale))
        yield stack_rules(f"{ours}.attention.qkv.weight", merged)
        biases = [(f"{theirs}.self_attn.{name}_proj.bias", (count,)) for name, count in rows.items()]
        yield stack(f"{ours}.attention.qkv.bias", biases)
        yield from _routed(f"{ours}.attention.out", [f"{theirs}.self_attn.o_proj"], hidden, rows["q"], adapter)
        gates = [f"{theirs}.mlp.{name}_proj" for name in ("gate", "up")]
        yield from _routed(f"{ours}.mlp.gate_up", gates, mlp, hidden, adapter)
        yield from _routed(f"{ours}.mlp.down", [f"{theirs}.mlp.down_proj"], hidden, mlp, adapter)
        for gate, stem in (("out", f"{theirs}.self_attn.o_proj"), ("mlp", f"{theirs}.mlp.gate_proj")):
            yield take(f"{ours}.gates.{gate}.norm.weight", f"{stem}.ln.weight", (hidden,))
            yield from pair(f"{ours}.gates.{gate}", f"{stem}.w_gate", (adapter.experts, hidden))
    yield take("decoder.norm.weight", f"{PREFIX}model.norm.weight", (hidden,))
    yield take("decoder.head.weight", embedding if spec.tied_head else f"{PREFIX}lm_head.weight", table)


def _routed(ours: str, parts: Sequence[str], rows: int, columns: int, adapter: RoutedLora) -> Iterator[Rule]:
    """A linear of one or more published parts; each part's experts and the shared one lie along the rank."""
    rank, names = adapter.rank, [*map(str, range(adapter.experts)), "g"]
    yield stack(f"{ours}.base.weight", [(f"{part}.weight", (rows, columns)) for part in parts])
    downs = [(f"{part}.lora_moe_A.{name}.weight", (rank, columns)) for part in parts for name in names]
    yield stack(f"{ours}.lora_a.weight", downs)
    for j, part in enumerate(parts):
        ups = [f"{part}.lora_moe_B.{name}.weight" for name in names]
        yield side_by_side(f"{ours}.lora_b.{j}.weight", ups, rows, rank)


TENSORS = PublishedTensors(rules, f"{PREFIX}lm_head.weight", BUFFERS)
