"""The decoder over the paged cache against export.modules, prefill in two parts and then single tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.target import Target

from export.backends.mlc.blocks.conftest import TARGET, assert_close, build, random_weights
from export.backends.mlc.blocks.decoder import Decoder, TokenEmbedding
from export.backends.mlc.blocks.linear import Layers
from export.modules.decoders.llama import Decoder as TorchDecoder
from export.modules.kernels import Kernels
from export.specs import DecoderSpec, EmbedSpec, RopeSpec

SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")


def spec(**changes) -> DecoderSpec:
    fields = {
        "hidden": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "mlp_width": 48,
        "vocabulary": 50,
        "norm_eps": 1e-5,
        "rope": RopeSpec(10000.0, 32),
        "max_positions": 64,
    }
    return DecoderSpec(**{**fields, **changes})


class Language(nn.Module):
    """Decoder, embedding and cache, as the library joins them."""

    def __init__(self, decoder: DecoderSpec) -> None:
        layers = Layers({}, "float32")
        self.sizes = decoder
        self.decoder = Decoder(decoder, layers)
        self.embed_tokens = TokenEmbedding(EmbedSpec(decoder.vocabulary, decoder.hidden), layers)

    def run(self, embeds, cache):
        return self.decoder.logits(self.decoder.hidden_states(embeds, cache), self.embed_tokens.table), cache

    def create(self, *sizes):
        d = self.sizes
        named = dict(zip(SIZES, sizes, strict=True))
        return TIRPagedKVCache(
            attn_kind="mha", **named, layer_partition=relax.ShapeExpr([0, d.layers]), num_hidden_layers=d.layers,
            num_attention_heads=d.heads, num_key_value_heads=d.kv_heads, qk_head_dim=d.head_dim, v_head_dim=d.head_dim,
            mla_original_qk_head_dim=0, mla_original_v_head_dim=0, rope_mode=RopeMode.NORMAL, rope_scale=1,
            rope_theta=d.rope.theta, rope_scaling={}, rope_ext_factors=relax.prim_value(0), rotary_dim=d.rope.dim,
            enable_disaggregation=False, dtype="float32", target=Target(TARGET),
        )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True, "kv_heads": 4, "tied_head": True},
        {"residual_scale": 0.25, "logit_divisor": 9.0, "kv_heads": 1},
    ],
    ids=["grouped query", "bias and tied head", "scales of MiniCPM"],
)
def test_the_decoder_agrees_with_pytorch_over_prefill_and_decode(rng, changes):
    sizes = spec(**changes)
    reference = TorchDecoder(sizes, Kernels())
    weights = {f"decoder.{name}": array for name, array in random_weights(reference).items()}
    weights["embed_tokens.table.weight"] = weights["decoder.head.weight"]
    if sizes.tied_head:
        del weights["decoder.head.weight"]
    block = Language(sizes)
    arguments = {"embeds": nn.spec.Tensor([1, "seq_len", 64], "float32"), "cache": nn.spec.Object(PagedKVCache)}
    methods = {"run": (block.run, arguments), "create": (block.create, {name: nn.spec.Int() for name in SIZES})}
    built = build(block, methods, weights)

    embeds = rng.standard_normal((1, 21, 64)).astype(np.float32)
    shape = tvm.runtime.ShapeTuple
    cache = built("create", *(shape([size]) for size in (1, 64, 32, 16, 0)), parameters=False)
    tvm.get_global_func("vm.builtin.kv_state_add_sequence")(cache, 0)
    outputs = []
    for start, stop in ((0, 7), (7, 19), (19, 20), (20, 21)):
        tvm.get_global_func("vm.builtin.kv_state_begin_forward")(cache, shape([0]), shape([stop - start]))
        outputs.append(built("run", np.ascontiguousarray(embeds[:, start:stop]), cache)[0].numpy())
        tvm.get_global_func("vm.builtin.kv_state_end_forward")(cache)
    # in float64: its own float32 is as far from that as the library is
    empty = torch.zeros(1, sizes.kv_heads, 0, 32, dtype=torch.float64)
    positions, rows = torch.arange(21)[None], torch.from_numpy(embeds).double()
    expected, _ = reference.double()(
        rows, torch.ones(1, 21, dtype=torch.int64), positions, positions[0], [(empty, empty)] * 2
    )
    assert_close(np.concatenate(outputs, axis=1), expected)
