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
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.wemm import weights
from export.modules.rules import unread_head
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import (
    Activation,
    DecoderSpec,
    EmbedSpec,
    ModelSpec,
    NormPlacement,
    PartialLora,
    PositionKind,
    RopeSpec,
    VisionSpec,
    WindowConnectorSpec,
)
from runtime_py.errors import UnsupportedModelError

EDGES = {"980": (378, 980), "2k": (756, 1960)}
"""(shortest, longest) edge by resize rule, where the config does not give them."""

RANKS = {"980": 256, "2k": 512}
KERNELS = {"980": 2, "2k": 4}
"""Published values, used only where no tensor is at hand to read them from."""

CHAT_END = 92542
"""<|im_end|>, the id chat stops at; config.json still names 2. A ``chat_end_token_id`` of text_config comes first, for
checkpoints with another vocabulary."""


class WeMM(Family):
    """Tencent's WeMM Chat models."""

    name = "wemm"
    processor = "wemm"
    hub_ids = ("feipengma/WeMM-Chat-CN", "feipengma/WeMM-Chat-2k-CN")
    licence = "MIT (code); weights under the licences of InternLM2 and Idefics2"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        return config.get("model_type") == "wemm_hf"

    def load_config(self, folder: Path) -> dict[str, Any]:
        """config.json, with the resize rule that only the presence of a code file tells."""
        config = super().load_config(folder)
        edge = config.get("image_processor", {}).get("size", {}).get("longest_edge")
        large = (folder / "image_processor_2k.py").is_file() or edge == EDGES["2k"][1]
        return config | {"resize_rule": "2k" if large else "980"}

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        if any(name.startswith("connector.") for name in source.infos):
            raise UnsupportedModelError(
                "this is WeMM 1.2, whose perceiver is wired by code that was never published",
                "WeMM-Chat-CN or WeMM-Chat-2k-CN: " + ", ".join(self.hub_ids),
                "use one of those checkpoints",
            )
        vision, text, rule = config["vision_config"], config["text_config"], config.get("resize_rule", "980")
        hidden, heads = text["hidden_size"], text["num_attention_heads"]
        conv = source.infos.get("downsampler.group_op.weight")
        low = source.infos.get("language_model.model.layers.0.attention.wo.Plora_A.weight")
        kernel = conv.shape[2] if conv else config["downsampler_config"].get("kernel_size", KERNELS[rule])
        rank = low.shape[0] if low else RANKS[rule]
        splitters = config.get("spliter_emb_config", {}).get("num_embeddings", 2)
        side = vision["image_size"] // vision["patch_size"]
        size = config.get("image_processor", {}).get("size", {})
        edges = (size.get("shortest_edge", EDGES[rule][0]), size.get("longest_edge", EDGES[rule][1]))
        cells = math.ceil(math.ceil(edges[1] / vision["patch_size"]) / kernel)
        return ModelSpec(
            family=self.name,
            variant="Chat-2k-CN" if rule == "2k" else "Chat-CN",
            vision=VisionSpec(
                width=vision["hidden_size"],
                layers=vision["num_hidden_layers"],
                heads=vision["num_attention_heads"],
                mlp_width=vision["intermediate_size"],
                patch_size=vision["patch_size"],
                activation=Activation.GELU_TANH,
                norm_placement=NormPlacement.PRE,
                norm_eps=vision["layer_norm_eps"],
                positions=PositionKind.INDEXED,
                native_grid=side,
                grid=None,
            ),
            connector=WindowConnectorSpec(vision["hidden_size"], hidden, kernel, splitters),
            embed=EmbedSpec(text["vocab_size"], hidden),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=text["num_hidden_layers"],
                heads=heads,
                kv_heads=text.get("num_key_value_heads", heads),
                head_dim=hidden // heads,
                mlp_width=text["intermediate_size"],
                vocabulary=text["vocab_size"],
                norm_eps=text["rms_norm_eps"],
                rope=RopeSpec(float(text["rope_theta"]), hidden // heads),
                max_positions=text["max_position_embeddings"],
                tied_head=text.get("tie_word_embeddings", False),
                adapter=PartialLora(rank),
            ),
            image_rows=cells * cells + 2,
            runtime={
                "patch_size": vision["patch_size"],
                "image_size": overview_side(edges, rule, vision["patch_size"]),
                "side": side,
                "kernel": kernel,
                "resize_rule": rule,
                "shortest_edge": edges[0],
                "longest_edge": edges[1],
                "bos": text.get("bos_token_id", 1),
            },
            generation={
                "stop_ids": sorted({text.get("eos_token_id", 2), text.get("chat_end_token_id", CHAT_END)}),
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 1,
                "repetition_penalty": 1.0,
                "max_new_tokens": 1024,
            },
            facts={"partial_lora_rank": rank, "downsampler_kernel": kernel, "resize_rule": rule},
        )

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return WeightMap(weights.rules(spec), source, ignored=(*weights.IGNORED, *unread_head(spec.decoder, weights.HEAD)))


def overview_side(edges: tuple[int, int], rule: str, patch: int) -> int:
    """Side of the square picture a phone sends, which the resize rule must leave alone: whole patches near 448 px."""
    side = edges[1] if rule == "2k" else max(edges[0], min(448, edges[1]))
    return side // patch * patch


FAMILY = WeMM()
