"""MiniCPM-V 1.0 (also called OmniLMM-3B) and 2.0.

    pixel_values --SigLIP-so400m, 26 of 27 blocks + final norm--> vision_features
    vision_features --resampler, 64 queries--> image_features (not scaled)
    input_ids --embed_tokens x scale_emb--> inputs_embeds, image rows overwritten
    inputs_embeds --MiniCPM decoder (branches x scale_depth / sqrt(layers), hidden / (hidden / dim_model_base))--> logits

Both versions store the same tensors. 1.0 squashes the picture to one square and resizes the stored key position table;
2.0 slices, keeps the aspect, and makes fresh sine key positions for every grid. Only ``slice_mode`` in the raw
config.json tells them apart. Sources: modeling_minicpmv.py of the 1.0 hub files (dubai03nsr/
multimodal-contrastive-decoding), 2.0 copies in bokesyo/minicpm-v-embedding-model, OpenBMB/mlc-MiniCPM at cd9c26e.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.minicpm_v import weights
from export.modules.rules import unread_head
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import (
    Activation,
    DecoderSpec,
    EmbedSpec,
    ModelSpec,
    NormPlacement,
    PositionKind,
    ResamplerSpec,
    RopeSpec,
    VisionSpec,
)
from runtime_py.errors import UnsupportedModelError

CLASS_DEFAULTS: dict[str, Any] = {
    "scale_emb": 1,
    "dim_model_base": 1,
    "scale_depth": 1,
    "tie_word_embeddings": False,
    "query_num": 64,
    "image_size": 448,
    "patch_size": 14,
    "drop_vision_last_layer": True,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "max_slice_nums": 9,
    "scale_resolution": 448,
}
"""Defaults of the published configuration class; they differ from the published values, so config.json comes first."""

SIGLIP_SO400M = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362, "patch_size": 14, "img_size": 384}
"""timm 0.9.10, ``vit_so400m_patch14_siglip_384``; config.json names the tower and does not repeat its sizes."""

TOKENS = {
    "unk": 0,
    "bos": 1,
    "eos": 2,
    "newline": 5,
    "image_start": 101,
    "image_end": 102,
    "slice_start": 111,
    "slice_end": 112,
}


class MiniCPMV(Family):
    """OpenBMB's MiniCPM-V; 2.5 and later have other decoders and towers and are refused by name."""

    name = "minicpm-v"
    aliases = ("minicpmv", "omnilmm-3b")
    processor = "minicpm_v"
    hub_ids = ("openbmb/MiniCPM-V", "openbmb/MiniCPM-V-2")
    licence = "Apache-2.0 (code); General Model License (weights: research free, commercial use after registration)"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        if config.get("model_type") != "minicpmv":
            return False
        version = config.get("version")
        if version is not None or "vision_config" in config:
            raise UnsupportedModelError(
                f"{folder} is MiniCPM-V {version or '2.5 or later'}, which has another tower and decoder",
                "MiniCPM-V 1.0 or 2.0: " + ", ".join(self.hub_ids),
                "use one of those checkpoints; docs/families/minicpm-v.md lists what is built",
            )
        return True

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        values = {**CLASS_DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
        tower = {**SIGLIP_SO400M, **values.get("timm_model_args", {})}
        sliced = bool(config.get("slice_mode", False))
        image_size, patch = values["image_size"], tower["patch_size"]
        side = image_size // patch
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        defaulted = sorted(key for key in CLASS_DEFAULTS if config.get(key) is None)
        return ModelSpec(
            family=self.name,
            variant="2.0" if sliced else "1.0",
            vision=VisionSpec(
                width=tower["embed_dim"],
                layers=tower["depth"] - int(values["drop_vision_last_layer"]),
                heads=tower["num_heads"],
                mlp_width=int(tower["embed_dim"] * tower["mlp_ratio"]),
                patch_size=patch,
                activation=Activation.GELU,
                norm_placement=NormPlacement.PRE,
                norm_eps=1e-6,
                positions=PositionKind.RESAMPLED if sliced else PositionKind.FIXED,
                native_grid=tower["img_size"] // patch,
                grid=None if sliced else (side, side),
            ),
            connector=ResamplerSpec(
                vision_width=tower["embed_dim"],
                width=hidden,
                queries=values["query_num"],
                heads=hidden // 128,
                norm_eps=1e-6,
                fixed_positions=None if sliced else side * side,
                project_vision=tower["embed_dim"] != hidden,
            ),
            embed=EmbedSpec(values["vocab_size"], hidden, float(values["scale_emb"])),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=values["num_hidden_layers"],
                heads=heads,
                kv_heads=values.get("num_key_value_heads", heads),
                head_dim=hidden // heads,
                mlp_width=values["intermediate_size"],
                vocabulary=values["vocab_size"],
                norm_eps=values["rms_norm_eps"],
                rope=RopeSpec(float(values["rope_theta"]), hidden // heads),
                max_positions=values["max_position_embeddings"],
                tied_head=values["tie_word_embeddings"],
                residual_scale=values["scale_depth"] / math.sqrt(values["num_hidden_layers"]),
                logit_divisor=hidden / values["dim_model_base"],
            ),
            image_rows=values["query_num"] * (1 + values["max_slice_nums"] if sliced else 1),
            runtime={
                "variant": "2.0" if sliced else "1.0",
                "image_size": image_size,
                "patch_size": patch,
                "native_grid": tower["img_size"] // patch,
                "queries": values["query_num"],
                "width": hidden,
                "scale_resolution": values["scale_resolution"],
                "max_slices": values["max_slice_nums"],
                "tokens": TOKENS,
                "max_prompt_tokens": 2048,
            },
            generation=generation_defaults(sliced),
            facts={
                "defaulted_config_keys": defaulted,
                "vision_tower": values.get("vision_encoder", "vit_so400m_patch14_siglip_384"),
            },
        )

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return WeightMap(weights.rules(spec), source, ignored=(*weights.IGNORED, *unread_head(spec.decoder, weights.HEAD)))


def generation_defaults(sliced: bool) -> dict[str, Any]:
    """Sampling defaults of the published ``chat``; 1.0 uses beams by default, here greedy with the same penalty."""
    if sliced:
        return {
            "stop_ids": [2],
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 100,
            "repetition_penalty": 1.05,
            "max_new_tokens": 1024,
        }
    return {
        "stop_ids": [2],
        "temperature": 0.0,
        "top_p": 0.8,
        "top_k": 100,
        "repetition_penalty": 1.2,
        "max_new_tokens": 2048,
    }


FAMILY = MiniCPMV()
