"""Published tensor names of the WeMM Chat models, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from export.families.tensors import PublishedTensors
from export.modules.connectors.specs import WindowConnectorSpec
from export.modules.decoders.specs import PartialLora
from export.modules.rules import flat_window
from export.modules.vision.specs import VisionSpec
from export.modules.vision.transformers_weights import idefics2_rules
from export.source.weight_map import Rule, compute, stack, take
from export.specs import DecoderSpec, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

LLM = "language_model."
HEAD = f"{LLM}output.weight"
IGNORED = ("*.rotary_emb.inv_freq",)


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, WindowConnectorSpec)
    return [*idefics2_rules(spec.vision, "vision_tower"), *_connector(spec.connector), *_language(spec.decoder)]


def _connector(spec: WindowConnectorSpec) -> Iterator[Rule]:
    vision, width, k = spec.vision_width, spec.width, spec.kernel
    kernel = [("downsampler.group_op.weight", (width, vision, k, k))]
    yield compute("connector.conv.weight", kernel, (width, k * k * vision), flat_window)
    yield take("connector.proj.weight", "downsampler.linear_model.1.weight", (width, width))
    yield take("connector.splitters", "visual_source_spliter_emb.weight", (spec.splitters, width))


def _language(spec: DecoderSpec) -> Iterator[Rule]:
    adapter = spec.adapter
    assert isinstance(adapter, PartialLora)
    hidden, mlp, rank, table = spec.hidden, spec.mlp_width, adapter.rank, (spec.vocabulary, spec.hidden)
    query = spec.heads * spec.head_dim
    qkv = query + 2 * spec.kv_heads * spec.head_dim
    ungroup = partial(ungrouped, kv_heads=spec.kv_heads, head_dim=spec.head_dim)
    yield take("embed_tokens.table.weight", f"{LLM}model.tok_embeddings.weight", table)
    for i in range(spec.layers):
        ours, theirs = f"decoder.layers.{i}", f"{LLM}model.layers.{i}"
        attention, mlp_ours = f"{theirs}.attention", f"{ours}.mlp"
        yield take(f"{ours}.input_norm.weight", f"{theirs}.attention_norm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{theirs}.ffn_norm.weight", (hidden,))
        base, low = [(f"{attention}.wqkv.original_linear.weight", (qkv, hidden))], (rank, hidden)
        yield compute(f"{ours}.attention.qkv.base.weight", base, (qkv, hidden), ungroup)
        yield take(f"{ours}.attention.qkv.lora_a.weight", f"{attention}.wqkv.Plora_A.weight", low)
        up = [(f"{attention}.wqkv.Plora_B.weight", (qkv, rank))]
        yield compute(f"{ours}.attention.qkv.lora_b.0.weight", up, (qkv, rank), ungroup)
        yield from _adapted(f"{ours}.attention.out", [f"{attention}.wo"], hidden, query, rank)
        gates = [f"{theirs}.feed_forward.{name}" for name in ("w1", "w3")]
        yield from _adapted(f"{mlp_ours}.gate_up", gates, mlp, hidden, rank)
        yield from _adapted(f"{mlp_ours}.down", [f"{theirs}.feed_forward.w2"], hidden, mlp, rank)
    yield take("decoder.norm.weight", f"{LLM}model.norm.weight", (hidden,))
    yield take("decoder.head.weight", f"{LLM}model.tok_embeddings.weight" if spec.tied_head else HEAD, table)


def _adapted(ours: str, parts: list[str], rows: int, columns: int, rank: int) -> Iterator[Rule]:
    """A linear of one or more published parts, each with its own low-rank pair."""
    yield stack(f"{ours}.base.weight", [(f"{part}.original_linear.weight", (rows, columns)) for part in parts])
    yield stack(f"{ours}.lora_a.weight", [(f"{part}.Plora_A.weight", (rank, columns)) for part in parts])
    for j, part in enumerate(parts):
        yield take(f"{ours}.lora_b.{j}.weight", f"{part}.Plora_B.weight", (rows, rank))


def ungrouped(packed: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """InternLM2's rows, per kv head its query heads, its key, its value, to all q, all k, all v."""
    import torch

    columns = packed.shape[1]
    grouped = packed.view(kv_heads, -1, head_dim, columns)
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return torch.cat([part.reshape(-1, columns) for part in parts])


TENSORS = PublishedTensors(rules, HEAD, IGNORED)
