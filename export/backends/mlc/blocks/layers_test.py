"""Linear layers, embeddings and norms against export.modules.kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tvm.relax.frontend import nn

from export.backends.mlc.blocks.attention import full_attention, packed_attention
from export.backends.mlc.blocks.conftest import assert_close, build, random_weights
from export.backends.mlc.blocks.linear import Embedding, GroupEmbedding, GroupLinear, Linear
from export.backends.mlc.blocks.norms import LayerNorm, RMSNorm
from export.backends.mlc.parameters import pack
from export.backends.mlc.support import score_blocks
from export.modules import kernels
from export.quantisation.grids import GRIDS

TOKENS = ["batch_size", "seq_len"]


def packed(weight: np.ndarray) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """q_weight and q_scale of a matrix, and what they stand for."""
    grid = GRIDS["q4f32_1"]
    codes = grid.quantise(torch.from_numpy(weight))
    words = np.ascontiguousarray(pack(codes)).view("<u4")
    return {"q_weight": words, "q_scale": codes.scales.numpy()}, grid.dequantise(codes)[:, : weight.shape[1]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("columns", [64, 80])
def test_whole_and_int4_linear(rng, bias, columns):
    reference = kernels.Linear(columns, 48, bias, kernels.Role.DECODER)
    weights = random_weights(reference)
    x = rng.standard_normal((2, 5, columns)).astype(np.float32)
    arguments = {"x": nn.spec.Tensor([*TOKENS, columns], "float32")}
    whole = Linear(columns, 48, bias, "float32")
    assert_close(build(whole, {"run": (whole.forward, arguments)}, weights)("run", x), reference(torch.from_numpy(x)))

    halves, stands_for = packed(weights.pop("weight"))
    reference.weight.data = stands_for
    grouped = GroupLinear(columns, 48, bias, "float32")
    built = build(grouped, {"run": (grouped.forward, arguments)}, {**weights, **halves})
    assert_close(built("run", x), reference(torch.from_numpy(x)))


def test_embedding_rows_are_scaled_and_the_tied_head_is_not(rng):
    table = rng.standard_normal((50, 40)).astype(np.float32)
    ids, x = np.array([3, 49, 0], np.int32), rng.standard_normal((1, 2, 40)).astype(np.float32)
    arguments = {"ids": nn.spec.Tensor(["seq_len"], "int32")}
    hidden = {"x": nn.spec.Tensor([*TOKENS, 40], "float32")}
    halves, stands_for = packed(table)
    for kind, weights, rows in ((Embedding, {"weight": table}, table), (GroupEmbedding, halves, stands_for.numpy())):
        block = kind(50, 40, 12.0, "float32")
        built = build(block, {"embed": (block.forward, arguments), "head": (block.head, hidden)}, weights)
        assert_close(built("embed", ids), rows[ids] * 12.0)
        assert_close(built("head", x), x @ rows.T)


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms_with_a_large_mean(rng, kind):
    reference = getattr(kernels.Kernels(), kind)(72, 1e-6)
    weights = random_weights(reference)
    block = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}[kind](72, 1e-6, "float32")
    x = (rng.standard_normal((2, 3, 72)) + 300.0).astype(np.float32)
    built = build(block, {"run": (block.forward, {"x": nn.spec.Tensor([*TOKENS, 72], "float32")})}, weights)
    exact = reference.double()(torch.from_numpy(x).double()).float()
    assert_close(built("run", x), exact, bound=1e-4 if kind == "layer_norm" else 5e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("known", [True, False], ids=["known length", "symbolic length"])
def test_attention_in_blocks_of_queries(rng, known, packed):
    tokens, heads, width = 37, 3, 24
    q, k, v = (rng.standard_normal((1, tokens, width)).astype(np.float32) for _ in range(3))
    shape = [1, tokens if known else "tokens", width]

    class Attend(nn.Module):
        def run(self, q, k, v):
            return full_attention(q, k, v, heads, most=tokens, score_bytes=700)

        def run_packed(self, qkv):
            return packed_attention(qkv, heads, most=tokens, score_bytes=700)

    block = Attend()
    arguments = {name: nn.spec.Tensor(shape, "float32") for name in "qkv"}
    side_by_side = {"qkv": nn.spec.Tensor([*shape[:2], 3 * width], "float32")}
    built = build(block, {"run": (block.run_packed, side_by_side) if packed else (block.run, arguments)}, {})
    by_head = (torch.from_numpy(x).reshape(1, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(*by_head).transpose(1, 2).reshape(1, tokens, width)
    assert score_blocks(heads, tokens, tokens, 700) == 24
    assert_close(built("run", np.concatenate([q, k, v], axis=-1)) if packed else built("run", q, k, v), expected)
