"""Published tensor names of CogVLM2 and CogVLM2-Video, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from export.families.tensors import PublishedTensors
from export.modules.connectors.specs import GluConnectorSpec
from export.modules.rules import flat_window, pair
from export.modules.vision.specs import VisionSpec
from export.source.weight_map import Rule, compute, stack, take
from export.specs import DecoderSpec, ModelSpec
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

VISION = "model.vision."


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, GluConnectorSpec)
    embedding = ("model.embed_tokens.weight", (spec.embed.vocabulary, spec.embed.width))
    return [
        *_vision(spec.vision),
        *_connector(spec.connector),
        take("embed_tokens.table.weight", *embedding),
        *_decoder(spec.decoder),
        take("decoder.head.weight", *(embedding if spec.decoder.tied_head else ("lm_head.weight", embedding[1]))),
    ]


def _vision(spec: VisionSpec) -> Iterator[Rule]:
    width, mlp, patch = spec.width, spec.mlp_width, spec.patch_size
    embedding = f"{VISION}patch_embedding"
    yield from pair("vision_encoder.patch", f"{embedding}.proj", (width, 3, patch, patch))
    table = [(f"{embedding}.position_embedding.weight", (spec.native_grid**2 + 1, width))]
    yield take("vision_encoder.class_token", f"{embedding}.cls_embedding", (1, width))
    yield compute("vision_encoder.class_position", table, (1, width), _first_row)
    yield compute("vision_encoder.positions", table, (spec.native_grid**2, width), _other_rows)
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"{VISION}transformer.layers.{i}"
        yield from pair(f"{ours}.norm1", f"{theirs}.input_layernorm", (width,))
        yield from pair(f"{ours}.norm2", f"{theirs}.post_attention_layernorm", (width,))
        yield from pair(f"{ours}.attention.qkv", f"{theirs}.attention.query_key_value", (3 * width, width))
        yield from pair(f"{ours}.attention.out", f"{theirs}.attention.dense", (width, width))
        yield from pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", (mlp, width))
        yield from pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", (width, mlp))


def _first_row(table: Tensor) -> Tensor:
    return table[:1]


def _other_rows(table: Tensor) -> Tensor:
    return table[1:]


def _connector(spec: GluConnectorSpec) -> Iterator[Rule]:
    width, vision, mlp = spec.width, spec.vision_width, spec.mlp_width
    yield compute(
        "connector.conv.weight", [(f"{VISION}conv.weight", (vision, vision, 2, 2))], (vision, 4 * vision), flat_window
    )
    yield take("connector.conv.bias", f"{VISION}conv.bias", (vision,))
    glu = f"{VISION}linear_proj"
    yield take("connector.proj.weight", f"{glu}.linear_proj.weight", (width, vision))
    yield from pair("connector.norm", f"{glu}.norm1", (width,))
    gates = [(f"{glu}.{name}.weight", (mlp, width)) for name in ("gate_proj", "dense_h_to_4h")]
    yield stack("connector.gate_up.weight", gates)
    yield take("connector.down.weight", f"{glu}.dense_4h_to_h.weight", (width, mlp))
    for ours, theirs in (("begin", "boi"), ("end", "eoi")):
        yield compute(f"connector.{ours}", [(f"{VISION}{theirs}", (1, 1, width))], (1, width), _row)


def _row(value: Tensor) -> Tensor:
    return value[0]


def _decoder(spec: DecoderSpec) -> Iterator[Rule]:
    hidden, mlp = spec.hidden, spec.mlp_width
    query = spec.heads * spec.head_dim
    qkv = query + 2 * spec.kv_heads * spec.head_dim
    experts = ("language", "vision") if spec.adapter is not None else ("language",)
    for i in range(spec.layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        yield take(f"{ours}.input_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
        for expert in experts:
            own = f".{expert}" if len(experts) == 2 else ""
            attention = f"{theirs}.self_attn.{expert}_expert"
            yield take(f"{ours}.attention.qkv{own}.weight", f"{attention}_query_key_value.weight", (qkv, hidden))
            if expert == "vision":
                yield take(f"{ours}.attention.qkv{own}.bias", f"{attention}_query_key_value.bias", (qkv,))
            yield take(f"{ours}.attention.out{own}.weight", f"{attention}_dense.weight", (hidden, query))
            gates = [(f"{theirs}.mlp.{expert}_mlp.{name}_proj.weight", (mlp, hidden)) for name in ("gate", "up")]
            yield stack(f"{ours}.mlp{own}.gate_up.weight", gates)
            yield take(f"{ours}.mlp{own}.down.weight", f"{theirs}.mlp.{expert}_mlp.down_proj.weight", (hidden, mlp))
    if spec.rope.stored:
        buffers = [(f"model.layers.{i}.self_attn.rotary_emb.inv_freq", (spec.rope.dim // 2,)) for i in range(spec.layers)]
        yield compute("decoder.attend.frequencies", buffers, (spec.rope.dim // 2,), _one_of_equals)
    yield take("decoder.norm.weight", "model.norm.weight", (hidden,))


def _one_of_equals(*buffers: Tensor) -> Tensor:
    """The rotary frequencies, which every layer stores; layers that disagree would need tables of their own."""
    if any(not buffer.equal(buffers[0]) for buffer in buffers):
        raise CheckpointError(
            "the layers store different rotary frequencies",
            "equal rotary_emb.inv_freq in all layers",
            "check the checkpoint",
        )
    return buffers[0]


TENSORS = PublishedTensors(rules)
