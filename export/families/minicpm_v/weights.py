"""Published tensor names of MiniCPM-V 1.0 and 2.0, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from export.modules.connectors.resampler_weights import resampler_rules
from export.source.weight_map import Rule, compute, stack, take
from export.specs import ModelSpec, PositionKind, VisionSpec
from runtime_py.preprocess.resample import antialiased_bicubic, resample_table

IGNORED = ("llm.model.layers.*.self_attn.rotary_emb.inv_freq",)


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    return [*_vision(spec.vision), *resampler_rules(spec.connector, "resampler."), *_language(spec)]


def _vision(spec: VisionSpec) -> Iterator[Rule]:
    width, mlp, patch = spec.width, spec.mlp_width, spec.patch_size
    yield take("vision_encoder.patch.weight", "vpm.patch_embed.proj.weight", (width, 3, patch, patch))
    yield take("vision_encoder.patch.bias", "vpm.patch_embed.proj.bias", (width,))
    stored = (1, spec.native_grid**2, width)
    grid = spec.grid if spec.positions is PositionKind.FIXED and spec.grid else (spec.native_grid, spec.native_grid)
    yield compute(
        "vision_encoder.positions",
        [("vpm.pos_embed", stored)],
        (grid[0] * grid[1], width),
        partial(_resample_positions, native=spec.native_grid, grid=grid),
    )
    linears = {"attention.qkv": ("attn.qkv", 3 * width, width), "attention.out": ("attn.proj", width, width)}
    linears |= {"mlp.fc1": ("mlp.fc1", mlp, width), "mlp.fc2": ("mlp.fc2", width, mlp)}
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"vpm.blocks.{i}"
        for norm in ("norm1", "norm2"):
            yield take(f"{ours}.{norm}.weight", f"{theirs}.{norm}.weight", (width,))
            yield take(f"{ours}.{norm}.bias", f"{theirs}.{norm}.bias", (width,))
        for name, (published, rows, columns) in linears.items():
            yield take(f"{ours}.{name}.weight", f"{theirs}.{published}.weight", (rows, columns))
            yield take(f"{ours}.{name}.bias", f"{theirs}.{published}.bias", (rows,))
    yield take("vision_encoder.norm.weight", "vpm.norm.weight", (width,))
    yield take("vision_encoder.norm.bias", "vpm.norm.bias", (width,))


def _resample_positions(table, native: int, grid: tuple[int, int]):
    """Stored (1, native^2, width) positions to (rows * columns, width); untouched when the grid is the native one."""
    import torch

    if grid == (native, native):
        return table[0]
    rows, columns = (antialiased_bicubic(native, size) for size in grid)
    return torch.from_numpy(resample_table(table[0].numpy(), rows, columns).astype(np.float32))


def _language(spec: ModelSpec) -> Iterator[Rule]:
    decoder = spec.decoder
    hidden, mlp = decoder.hidden, decoder.mlp_width
    q, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    embedding = ("llm.model.embed_tokens.weight", (spec.embed.vocabulary, hidden))
    yield take("embed_tokens.table.weight", *embedding)
    for i in range(decoder.layers):
        ours, theirs = f"decoder.layers.{i}", f"llm.model.layers.{i}"
        yield take(f"{ours}.input_norm.weight", f"{theirs}.input_layernorm.weight", (hidden,))
        yield take(f"{ours}.post_norm.weight", f"{theirs}.post_attention_layernorm.weight", (hidden,))
        projections = [
            (f"{theirs}.self_attn.{name}_proj.weight", (rows, hidden)) for name, rows in zip("qkv", (q, kv, kv), strict=True)
        ]
        yield stack(f"{ours}.attention.qkv.weight", projections)
        yield take(f"{ours}.attention.out.weight", f"{theirs}.self_attn.o_proj.weight", (hidden, q))
        yield stack(
            f"{ours}.mlp.gate_up.weight", [(f"{theirs}.mlp.{name}_proj.weight", (mlp, hidden)) for name in ("gate", "up")]
        )
        yield take(f"{ours}.mlp.down.weight", f"{theirs}.mlp.down_proj.weight", (hidden, mlp))
    yield take("decoder.norm.weight", "llm.model.norm.weight", (hidden,))
    yield take("decoder.head.weight", *(embedding if decoder.tied_head else ("llm.lm_head.weight", embedding[1])))
