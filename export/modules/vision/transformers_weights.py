"""How vision towers under transformers' tensor names become the parameters of a vision encoder.

Sources: huggingface/transformers v4.30.0 models/clip/modeling_clip.py, v4.40.0 models/idefics2/modeling_idefics2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from export.modules.rules import pair
from export.modules.vision.specs import VisionSpec
from export.source.weight_map import Rule, compute, stack, take

if TYPE_CHECKING:
    from torch import Tensor


def clip_rules(spec: VisionSpec, root: str) -> Iterator[Rule]:
    """Rules for ``vision_encoder.`` up to the last block of the spec; ``root`` is the published ``vision_model``."""
    width, patch = spec.width, spec.patch_size
    yield take("vision_encoder.patch.weight", f"{root}.embeddings.patch_embedding.weight", (width, 3, patch, patch))
    yield compute("vision_encoder.class_token", [(f"{root}.embeddings.class_embedding", (width,))], (1, width), _one_row)
    table = [(f"{root}.embeddings.position_embedding.weight", (spec.native_grid**2 + 1, width))]
    yield compute("vision_encoder.class_position", table, (1, width), partial(_rows, start=0, stop=1))
    yield compute("vision_encoder.positions", table, (spec.native_grid**2, width), partial(_rows, start=1, stop=None))
    yield from pair("vision_encoder.input_norm", f"{root}.pre_layrnorm", (width,))
    yield from _blocks(spec, f"{root}.encoder")


def idefics2_rules(spec: VisionSpec, root: str) -> Iterator[Rule]:
    """Rules for ``vision_encoder.`` of an Idefics2VisionTransformer; ``root`` is its published name."""
    width, patch = spec.width, spec.patch_size
    yield from pair("vision_encoder.patch", f"{root}.embeddings.patch_embedding", (width, 3, patch, patch))
    table = (spec.native_grid**2, width)
    yield take("vision_encoder.positions", f"{root}.embeddings.position_embedding.weight", table)
    yield from _blocks(spec, f"{root}.encoder")
    yield from pair("vision_encoder.norm", f"{root}.post_layernorm", (width,))


def _blocks(spec: VisionSpec, root: str) -> Iterator[Rule]:
    """Every block; q, k and v are stored apart."""
    width, mlp = spec.width, spec.mlp_width
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"{root}.layers.{i}"
        yield from pair(f"{ours}.norm1", f"{theirs}.layer_norm1", (width,))
        yield from pair(f"{ours}.norm2", f"{theirs}.layer_norm2", (width,))
        for half, shape in (("weight", (width, width)), ("bias", (width,))):
            parts = [(f"{theirs}.self_attn.{name}_proj.{half}", shape) for name in "qkv"]
            yield stack(f"{ours}.attention.qkv.{half}", parts)
        yield from pair(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj", (width, width))
        yield from pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", (mlp, width))
        yield from pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", (width, mlp))


def _one_row(vector: Tensor) -> Tensor:
    return vector[None]


def _rows(table: Tensor, start: int, stop: int | None) -> Tensor:
    return table[start:stop]
