"""CogVLM2 (image: chat 19B, English and Chinese) and CogVLM2-Video (chat and base).

    pixel_values --EVA2-CLIP-E, 63 blocks, norm on the branch output, class row kept--> vision_features
    vision_features --2 x 2 convolution, GLU, between boi and eoi--> image_features
    input_ids --embed_tokens--> inputs_embeds, placeholder rows overwritten
    inputs_embeds --Llama-3-8B with visual experts (image models)--> logits

All patches of an image share one position id; the cache index does not. The rotary frequencies are read from the
checkpoint, where they are bfloat16. Whether there are visual experts is read from the tensors. config.json has no
model_type. Sources: THUDM/cogvlm2-llama3-chat-19B (kept in Niky-san/cogvlm2_surce at 29bac8a),
THUDM/cogvlm2-llama3-caption (kept in csbhr/Vivid-VR at 38c736a).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.cogvlm2 import weights
from export.modules.rules import unread_head
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import (
    Activation,
    DecoderSpec,
    EmbedSpec,
    GluConnectorSpec,
    ModelSpec,
    NormPlacement,
    PositionKind,
    RopeSpec,
    VisionSpec,
    VisualExperts,
)
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

PAD = 128002
"""Placeholder id, a literal in the published code; ``pad_token_id`` in config.json comes first."""


class CogVLM2(Family):
    """Zhipu's CogVLM2; the bitsandbytes int4 files are refused by name."""

    name = "cogvlm2"
    aliases = ("cogvlm2-llama3",)
    processor = "cogvlm2"
    hub_ids = (
        "THUDM/cogvlm2-llama3-chat-19B",
        "THUDM/cogvlm2-llama3-chinese-chat-19B",
        "THUDM/cogvlm2-video-llama3-chat",
        "THUDM/cogvlm2-video-llama3-base",
        "THUDM/cogvlm2-llama3-caption",
    )
    licence = "Apache-2.0 (code); CogVLM2 licence and Meta Llama 3 Community License (weights)"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        architectures = config.get("architectures") or []
        if not any(name in ("CogVLMForCausalLM", "CogVLMVideoForCausalLM") for name in architectures):
            return False
        if "num_multi_query_heads" not in config:
            raise UnsupportedModelError(
                f"{folder} is a first-generation CogVLM",
                "CogVLM2 (num_multi_query_heads in config.json): " + ", ".join(self.hub_ids),
                "use one of those checkpoints",
            )
        if config.get("quantization_config"):
            raise UnsupportedModelError(
                f"{folder} holds bitsandbytes 4-bit weights, from which the original values cannot be had back",
                "a full-precision checkpoint, e.g. THUDM/cogvlm2-llama3-chat-19B",
                "export the full-precision one with --precision int4",
            )
        return True

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        tower = config["vision_config"]
        hidden, heads, mlp = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
        grid = tower["image_size"] // tower["patch_size"]
        names = source.infos
        video = "CogVLMVideoForCausalLM" in config["architectures"]
        experts = any(".vision_mlp." in name for name in names) if names else not video
        stored = any(name.endswith("rotary_emb.inv_freq") for name in names) if names else True
        template = config.get("template_version", "chat")
        if tower.get("hidden_act", "gelu") != "gelu" or math.isqrt(tower["num_positions"] - 1) != grid:
            raise UnsupportedModelError(
                f"vision tower with activation {tower.get('hidden_act')} and {tower['num_positions']} positions",
                f"gelu and {grid * grid + 1} positions for a {tower['image_size']} px image",
                "check config.json",
            )
        return ModelSpec(
            family=self.name,
            variant=f"{'video' if video else 'image'}-{template}",
            vision=VisionSpec(
                width=tower["hidden_size"],
                layers=tower["num_hidden_layers"],
                heads=tower["num_heads"],
                mlp_width=tower["intermediate_size"],
                patch_size=tower["patch_size"],
                activation=Activation.GELU,
                norm_placement=NormPlacement.BRANCH_OUTPUT,
                norm_eps=tower["layer_norm_eps"],
                positions=PositionKind.FIXED,
                native_grid=grid,
                grid=(grid, grid),
                class_token=True,
                emit_class_token=True,
                final_norm=False,
            ),
            connector=GluConnectorSpec(tower["hidden_size"], hidden, mlp, grid, 1e-5),
            embed=EmbedSpec(config["vocab_size"], hidden),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config["num_multi_query_heads"],
                head_dim=hidden // heads,
                mlp_width=mlp,
                vocabulary=config["vocab_size"],
                norm_eps=config["rms_norm_eps"],
                rope=RopeSpec(500000.0, hidden // heads, stored=stored),
                max_positions=config["max_position_embeddings"],
                tied_head=config.get("tie_word_embeddings", False),
                adapter=VisualExperts() if experts else None,
            ),
            image_rows=(grid // 2) ** 2 + 2,
            runtime={
                "video": video,
                "template": template,
                "experts": experts,
                "image_size": tower["image_size"],
                "mean": list(CLIP_MEAN),
                "std": list(CLIP_STD),
                "rows": (grid // 2) ** 2 + 2,
                "marker_rows": [1, 1],
                "frames": 24,
                "bos": config.get("bos_token_id", 128000),
                "pad": config.get("pad_token_id", PAD),
            },
            generation={
                "stop_ids": [config.get("eos_token_id", 128001)],
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 1,
                "repetition_penalty": 1.0,
                "max_new_tokens": 2048,
            },
            facts={"visual_experts": experts, "stored_rotary_frequencies": stored},
        )

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return WeightMap(weights.rules(spec), source, ignored=unread_head(spec.decoder))


FAMILY = CogVLM2()
