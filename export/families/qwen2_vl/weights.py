"""Published tensor names of Qwen2-VL, and how each parameter comes from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from export.families.tensors import PublishedTensors
from export.modules.connectors.specs import PatchMergerSpec
from export.modules.decoders.llama_weights import llama_rules
from export.modules.rules import pair
from export.modules.vision.specs import RotaryVisionSpec
from export.source.weight_map import Rule, compute
from export.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


MODULES = {"model.language_model.": "model.", "model.visual.": "visual."}
"""What names begin with in a state dictionary of transformers 5, to what the published files have."""


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    return [*image_rules(spec), *llama_rules(spec.decoder)]


def image_rules(spec: ModelSpec, prefix: str = "") -> Iterator[Rule]:
    """Rules for ``vision_encoder.`` and ``connector.``; ``prefix`` stands before every published name."""
    assert isinstance(spec.vision, RotaryVisionSpec) and isinstance(spec.connector, PatchMergerSpec)
    yield from _vision(spec.vision, f"{prefix}visual.")
    yield from _merger(spec.connector, f"{prefix}visual.merger.")


def _vision(spec: RotaryVisionSpec, root: str) -> Iterator[Rule]:
    width, mlp = spec.width, spec.mlp_width
    side = round((spec.patch_values / 6) ** 0.5)
    kernel = [(f"{root}patch_embed.proj.weight", (width, 3, 2, side, side))]
    yield compute("vision_encoder.patch.weight", kernel, (width, spec.patch_values), _flat)
    for i in range(spec.layers):
        ours, theirs = f"vision_encoder.blocks.{i}", f"{root}blocks.{i}"
        yield from pair(f"{ours}.norm1", f"{theirs}.norm1", (width,))
        yield from pair(f"{ours}.norm2", f"{theirs}.norm2", (width,))
        yield from pair(f"{ours}.attention.qkv", f"{theirs}.attn.qkv", (3 * width, width))
        yield from pair(f"{ours}.attention.out", f"{theirs}.attn.proj", (width, width))
        yield from pair(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", (mlp, width))
        yield from pair(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", (width, mlp))


def _flat(kernel: Tensor) -> Tensor:
    return kernel.reshape(kernel.shape[0], -1)


def _merger(spec: PatchMergerSpec, root: str) -> Iterator[Rule]:
    joined = spec.vision_width * spec.merge * spec.merge
    yield from pair("connector.norm", f"{root}ln_q", (spec.vision_width,))
    yield from pair("connector.fc1", f"{root}mlp.0", (joined, joined))
    yield from pair("connector.fc2", f"{root}mlp.2", (spec.width, joined))


BUFFERS = ("*rotary_emb.inv_freq", "*rotary_pos_emb.inv_freq")
"""What older trainers save although it is computed from the config."""

TENSORS = PublishedTensors(rules, ignored=BUFFERS)
