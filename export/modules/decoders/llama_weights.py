"""How Llama-style published tensors become the parameters of `TokenEmbedding` and `Decoder`."""

from __future__ import annotations

from collections.abc import Iterator

from export.source.weight_map import Rule, stack, take
from export.specs import DecoderSpec

ROTARY_BUFFERS = "*.self_attn.rotary_emb.inv_freq"
"""Buffers that older files carry and nothing reads."""


def llama_rules(spec: DecoderSpec, prefix: str = "model.", head: str = "lm_head.weight") -> Iterator[Rule]:
    """Rules for ``embed_tokens.`` and ``decoder.``; ``prefix`` stands before ``embed_tokens``, ``layers`` and ``norm``."""
    hidden, mlp = spec.hidden, spec.mlp_width
    rows = {"q": spec.heads * spec.head_dim, "k": spec.kv_heads * spec.head_dim, "v": spec.kv_heads * spec.head_dim}
    table = (spec.vocabulary, hidden)
    yield take("embed_tokens.table.weight", f"{prefix}embed_tokens.weight", table)
    for i in range(spec.layers):
        ours, theirs = f"decoder.layers.{i}", f"{prefix}layers.{i}"
        yield take(f"{ours}.input_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
        projections = [(f"{theirs}.self_attn.{name}_proj", count) for name, count in rows.items()]
        yield stack(f"{ours}.attention.qkv.weight", [(f"{name}.weight", (count, hidden)) for name, count in projections])
        if spec.qkv_bias:
            yield stack(f"{ours}.attention.qkv.bias", [(f"{name}.bias", (count,)) for name, count in projections])
        yield take(f"{ours}.attention.out.weight", f"{theirs}.self_attn.o_proj.weight", (hidden, rows["q"]))
        yield stack(
            f"{ours}.mlp.gate_up.weight", [(f"{theirs}.mlp.{name}_proj.weight", (mlp, hidden)) for name in ("gate", "up")]
        )
        yield take(f"{ours}.mlp.down.weight", f"{theirs}.mlp.down_proj.weight", (hidden, mlp))
    yield take("decoder.norm.weight", f"{prefix}norm.weight", (hidden,))
    yield take("decoder.head.weight", f"{prefix}embed_tokens.weight" if spec.tied_head else head, table)
