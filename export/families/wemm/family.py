"""WeMM-Chat-CN and WeMM-Chat-2k-CN: Idefics2's NaViT tower, a strided convolution, InternLM2 with partial LoRA.

    pixel_values (any grid) --27 blocks + post norm, positions by bucket--> vision_features
    vision_features --k x k windows, GELU, linear, between two splitter rows--> image_features
    input_ids --embed_tokens--> inputs_embeds, the image block in place of <image>
    inputs_embeds --InternLM2, B A x added on image rows in prefill--> logits

Kernel and rank are read from tensor shapes. WeMM 1.2 carries a perceiver as well, whose wiring is published nowhere, and is
refused. Sources: Ascend/MindIE-LLM examples/atb_models/atb_llm/models/wemm; transformers v4.40.0 models/idefics2;
ByungKwanLee/MoAI moai/arch/modeling_internlm2.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.pixels import check_pictures, edges_of
from export.families.config.stored import stored_size
from export.families.config.towers import MOST_SIDE, idefics2_tower
from export.families.wemm import weights
from export.families.wemm.prompt import prompt
from export.modules.connectors.specs import WindowConnectorSpec
from export.modules.decoders.specs import PartialLora
from export.source.tensor_source import TensorSource
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.pixels import HALF

EDGES = {"980": (378, 980), "2k": (756, 1960)}
"""(shortest, longest) edge by resize rule, where the config does not give them."""

RANKS = {"980": 256, "2k": 512}
KERNELS = {"980": 2, "2k": 4}
"""Published values, used only where no tensor is at hand to read them from."""

PICTURES = {
    "image_mean": (list(HALF), HALF[0]),
    "image_std": (list(HALF), HALF[0]),
    "resample": (2,),
    "do_image_splitting": (False,),
}

DOWNSAMPLER: dict[str, tuple[Any, ...]] = {"hidden_act": ("gelu",), "bias": (False,), "depth": (2,)}
"""Values of downsampler_config that are built; kernel and stride are the stored tensor's."""


class WeMM(Family):
    """Tencent's WeMM Chat models."""

    tensors = weights.TENSORS

    def load_config(self, folder: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """config.json, with the resize rule that only the presence of a code file, or the longest edge, tells."""
        config = super().load_config(folder, stated)
        large = (folder / "image_processor_2k.py").is_file() or _edges(
            CheckpointConfig.of(config, self.published_code()), "980"
        )[1] == EDGES["2k"][1]
        return config | {"resize_rule": "2k" if large else "980"}

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        if any(name.startswith("connector.") for name in source.infos):
            raise UnsupportedModelError(
                "this is WeMM 1.2, whose perceiver is wired by code that was never published",
                "WeMM-Chat-CN or WeMM-Chat-2k-CN: " + ", ".join(self.hub_ids),
                "use one of those checkpoints",
            )
        read = CheckpointConfig.of(config, self.published_code())
        decoder, rule = read.decoder(), "2k" if config.get("resize_rule") == "2k" else "980"
        vision = idefics2_tower(read.whole.section("vision_config"))
        stored = stored_size(source, "downsampler.group_op.weight", 2)
        downsampler = read.whole.section("downsampler_config")
        kernel = stored or downsampler.integer("kernel_size", 1, 16, KERNELS[rule])
        downsampler.only({**DOWNSAMPLER, "kernel_size": (kernel,), "stride": (kernel,)})
        read.whole.only({"do_image_splitting": PICTURES["do_image_splitting"]})
        rank = stored_size(source, "language_model.model.layers.0.attention.wo.Plora_A.weight", 0) or RANKS[rule]
        splitters = read.whole.section("spliter_emb_config").integer("num_embeddings", 2, 2, 2)
        for pictures in (read.whole.section("image_processor"), read.pictures):
            check_pictures(pictures, PICTURES)
        edges = _edges(read, rule)
        cells = math.ceil(math.ceil(edges[1] / vision.patch_size) / kernel)
        overview = overview_side(edges, rule, vision.patch_size)
        begin = {"<s>": read.token("bos_token_id", decoder.vocabulary, 1)}
        form = prompt(read.marks(decoder.vocabulary, begin))
        runtime: dict[str, Any] = {"patch_size": vision.patch_size, "image_size": overview, "side": vision.native_grid}
        runtime |= {"kernel": kernel, "resize_rule": rule, "shortest_edge": edges[0], "longest_edge": edges[1]}
        return ModelSpec(
            family=self.name,
            variant="Chat-2k-CN" if rule == "2k" else "Chat-CN",
            vision=vision,
            connector=WindowConnectorSpec(vision.width, decoder.hidden, kernel, splitters),
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden),
            decoder=replace(decoder, adapter=PartialLora(rank)),
            image=ImageSpec(vision.patch_size, SizeRule.EDGES, overview, overview, HALF, HALF, longest=edges[1]),
            image_rows=cells * cells + 2,
            runtime={**runtime, "prompt": form.to_json()},
            generation=read.answers(decoder.vocabulary, form.stop_ids(), default=2),
            facts={"partial_lora_rank": rank, "downsampler_kernel": kernel, "resize_rule": rule},
        )


def _edges(read: CheckpointConfig, rule: str) -> tuple[int, int]:
    return edges_of((read.whole.section("image_processor"), read.pictures), EDGES[rule], MOST_SIDE)


def overview_side(edges: tuple[int, int], rule: str, patch: int) -> int:
    """Side of the square picture a phone sends, which the resize rule must leave alone: whole patches near 448 px."""
    side = edges[1] if rule == "2k" else max(edges[0], min(448, edges[1]))
    return side // patch * patch


FAMILY = WeMM()
