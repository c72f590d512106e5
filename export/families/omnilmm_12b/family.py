"""OmniLMM-12B: an EVA-02 enormous tower, a perceiver resampler and Zephyr-7B-beta (Mistral).

    pixel_values --63 of 64 post-norm blocks + final norm, class row dropped--> vision_features
    vision_features --resampler, 64 queries--> image_features
    input_ids --embed_tokens--> inputs_embeds, rows between <im_start> and <im_end> overwritten
    inputs_embeds --Mistral decoder--> logits

The tower and the resampler sit inside the decoder module (``model.vision_tower``, ``model.resampler``). The tower's name is
hard-coded upstream, so its sizes are too. Sources: OpenBMB/MiniCPM-V at 0dbb566d, omnilmm/model/{omnilmm,resampler,utils}.py
and chat.py; timm 0.9.10 models/eva.py; transformers 4.36 models/mistral.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.decoders.llama_weights import ROTARY_BUFFERS, llama_rules
from export.modules.rules import unread_head
from export.modules.vision.timm_weights import timm_rules
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
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

CLASS_DEFAULTS: dict[str, Any] = {
    "num_query": 64,
    "image_size": 448,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}
"""Used where config.json is silent; every default used is named in the manifest's ``facts``."""

WINDOW = 4096
"""Mistral's ``sliding_window``: further back attention does not reach, and a package does not go (prompts end at 2048)."""

EVA02_ENORMOUS = {
    "embed_dim": 1792,
    "depth": 64,
    "num_heads": 16,
    "mlp_ratio": 8.571428571428571,
    "patch_size": 14,
    "img_size": 224,
}
"""timm 0.9.10, ``eva02_enormous_patch14_clip_224``: no rotary positions in spite of its name."""


class OmniLMM12B(Family):
    """OpenBMB's 12B model; one published checkpoint."""

    name = "omnilmm-12b"
    aliases = ("omnilmm",)
    processor = "omnilmm_12b"
    hub_ids = ("openbmb/OmniLMM-12B",)
    licence = "Apache-2.0 (code); General Model License (weights: research free, commercial use after registration)"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        return config.get("model_type") == "omnilmm"

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        values = {**CLASS_DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
        tower = {**EVA02_ENORMOUS, **values.get("timm_model_args", {})}
        hidden, heads, width = values["hidden_size"], values["num_attention_heads"], tower["embed_dim"]
        side = values["image_size"] // tower["patch_size"]
        embedding = source.infos.get("model.embed_tokens.weight")
        vocabulary = embedding.shape[0] if embedding else values["vocab_size"]
        return ModelSpec(
            family=self.name,
            variant="12B",
            vision=VisionSpec(
                width=width,
                layers=tower["depth"] - 1,
                heads=tower["num_heads"],
                mlp_width=int(width * tower["mlp_ratio"]),
                patch_size=tower["patch_size"],
                activation=Activation.GELU,
                norm_placement=NormPlacement.BRANCH_OUTPUT,
                norm_eps=1e-6,
                positions=PositionKind.FIXED,
                native_grid=tower["img_size"] // tower["patch_size"],
                grid=(side, side),
                class_token=True,
            ),
            connector=ResamplerSpec(width, hidden, values["num_query"], hidden // 128, 1e-6, side * side, width != hidden),
            embed=EmbedSpec(vocabulary, hidden),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=values["num_hidden_layers"],
                heads=heads,
                kv_heads=values.get("num_key_value_heads", heads),
                head_dim=hidden // heads,
                mlp_width=values["intermediate_size"],
                vocabulary=vocabulary,
                norm_eps=values["rms_norm_eps"],
                rope=RopeSpec(float(values["rope_theta"]), hidden // heads),
                max_positions=min(values["max_position_embeddings"], values.get("sliding_window", WINDOW)),
                tied_head=values["tie_word_embeddings"],
            ),
            image_rows=values["num_query"],
            runtime={
                "image_size": values["image_size"],
                "mean": list(CLIP_MEAN),
                "std": list(CLIP_STD),
                "queries": values["num_query"],
                "token_ids": values.get("golden_token_ids", {}),
                "bos": values.get("bos_token_id", 1),
                "max_prompt_tokens": 2048,
            },
            generation={
                "stop_ids": [values.get("eos_token_id", 2)],
                "temperature": 0.6,
                "top_p": 0.9,
                "top_k": 30,
                "repetition_penalty": 1.1,
                "max_new_tokens": 1024,
            },
            facts={"defaulted_config_keys": sorted(key for key in CLASS_DEFAULTS if config.get(key) is None)},
        )

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        rules = [
            *timm_rules(spec.vision, "model.vision_tower.", split_bias=True),
            *resampler_rules(spec.connector, "model.resampler."),
            *llama_rules(spec.decoder),
        ]
        unused_block = f"model.vision_tower.blocks.{spec.vision.layers}.*"
        return WeightMap(rules, source, ignored=(ROTARY_BUFFERS, unused_block, *unread_head(spec.decoder)))


FAMILY = OmniLMM12B()
