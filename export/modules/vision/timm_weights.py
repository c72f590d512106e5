"""How a timm vision transformer's published tensors become the parameters of `VisionTransformer`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from export.modules.rules import pair
from export.modules.vision.specs import PositionKind, VisionSpec
from export.source.weight_map import Rule, compute, take
from runtime_py.preprocess.resample import antialiased_bicubic, resample_table

if TYPE_CHECKING:
    from torch import Tensor


def timm_rules(spec: VisionSpec, prefix: str, split_bias: bool = False) -> Iterator[Rule]:
    """Rules for ``vision_encoder.``.

    Args:
        prefix: stands before every published name, e.g. ``vpm.``.
        split_bias: the fused projection has ``q_bias`` and ``v_bias`` and no key bias (EVA), not ``qkv.bias``.
    """
    width, mlp, patch = spec.width, spec.mlp_width, spec.patch_size
    yield take("vision_encoder.patch.weight", f"{prefix}patch_embed.proj.weight", (width, 3, patch, patch))
    yield take("vision_encoder.patch.bias", f"{prefix}patch_embed.proj.bias", (width,))
    yield from _position_rules(spec, prefix)
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"{prefix}blocks.{i}"
        for norm in ("norm1", "norm2"):
            yield from pair(f"{ours}.{norm}", f"{theirs}.{norm}", (width,))
        yield take(f"{ours}.attention.qkv.weight", f"{theirs}.attn.qkv.weight", (3 * width, width))
        if split_bias:
            halves = [(f"{theirs}.attn.{name}_bias", (width,)) for name in "qv"]
            yield compute(f"{ours}.attention.qkv.bias", halves, (3 * width,), _with_zero_key_bias)
        else:
            yield take(f"{ours}.attention.qkv.bias", f"{theirs}.attn.qkv.bias", (3 * width,))
        yield from pair(f"{ours}.attention.out", f"{theirs}.attn.proj", (width, width))
        yield from pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", (mlp, width))
        yield from pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", (width, mlp))
    yield from pair("vision_encoder.norm", f"{prefix}norm", (width,))


def _position_rules(spec: VisionSpec, prefix: str) -> Iterator[Rule]:
    width, first = spec.width, int(spec.class_token)
    stored = [(f"{prefix}pos_embed", (1, spec.native_grid**2 + first, width))]
    native = (spec.native_grid, spec.native_grid)
    grid = spec.grid if spec.positions is PositionKind.FIXED and spec.grid else native
    if spec.class_token:
        yield compute("vision_encoder.class_token", [(f"{prefix}cls_token", (1, 1, width))], (1, width), _first_row)
        yield compute("vision_encoder.class_position", stored, (1, width), _first_row)
    resize = partial(resample_positions, first=first, native=spec.native_grid, grid=grid)
    yield compute("vision_encoder.positions", stored, (grid[0] * grid[1], width), resize)


def _first_row(table: Tensor) -> Tensor:
    return table[0, :1]


def _with_zero_key_bias(query: Tensor, value: Tensor) -> Tensor:
    import torch

    return torch.cat([query, torch.zeros_like(query), value])


def resample_positions(table: Tensor, first: int, native: int, grid: tuple[int, int]) -> Tensor:
    """Stored (1, first + native^2, width) positions to (rows * columns, width); as they are on the native grid."""
    import torch

    if grid == (native, native):
        return table[0, first:]
    rows, columns = (antialiased_bicubic(native, size) for size in grid)
    return torch.from_numpy(resample_table(table[0, first:].numpy(), rows, columns).astype(np.float32))
