"""MiniCPM-Llama3-V 2.5.

    pixel_values (any grid) --SigLIP-so400m as Idefics2 has it, 27 blocks + post norm--> vision_features
    vision_features --resampler, 96 queries, fresh sine positions on the keys alone--> image_features
    input_ids --embed_tokens--> inputs_embeds, image rows overwritten
    inputs_embeds --Llama-3-8B--> logits

The tower's positions are picked from the first row of its 70 x 70 table: the published code lays a picture's patches out
as one row before it calls the tower (see runtime_py/preprocess/minicpm_llama3_v.py). Sources: the hub files of
openbmb/MiniCPM-Llama3-V-2_5 (config.json, configuration_minicpm.py, modeling_minicpmv.py, resampler.py,
model.safetensors.index.json), kept in theonlyengine/VQA_Model; transformers v4.40.0 models/idefics2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.minicpm_llama3_v import weights
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

VERSION = "2.5"

CLASS_DEFAULTS: dict[str, Any] = {
    "query_num": 64,
    "drop_vision_last_layer": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""Defaults of the published configuration class and of LlamaConfig; they differ from the published values."""

SLICE_DEFAULTS = {"patch_size": 14, "max_slice_nums": 9, "scale_resolution": 448}
"""Defaults of the published slice configuration; config.json leaves out ``scale_resolution``."""

TOKENS = {
    "bos": 128000,
    "eos": 128001,
    "unk": 128002,
    "start_header": 128006,
    "end_header": 128007,
    "eot": 128009,
    "image_start": 128010,
    "image_end": 128011,
    "slice_start": 128020,
    "slice_end": 128021,
}
"""tokenizer_config.json; a ``special_token_ids`` of config.json comes first, for checkpoints with another vocabulary."""


class MiniCPMLlama3V(Family):
    """OpenBMB's MiniCPM-Llama3-V 2.5; its bitsandbytes int4 files are refused by name."""

    name = "minicpm-llama3-v"
    aliases = ("minicpm-llama3-v-2.5", "minicpm-v-2.5")
    processor = "minicpm_llama3_v"
    hub_ids = ("openbmb/MiniCPM-Llama3-V-2_5",)
    licence = (
        "Apache-2.0 (code); General Model License and Meta Llama 3 Community License "
        "(weights: research free, commercial use after registration)"
    )

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        tower = config.get("vision_config") or {}
        if config.get("model_type") != "minicpmv" or tower.get("model_type") != "idefics2":
            return False
        if str(config.get("version", VERSION)) != VERSION:
            return False
        if config.get("quantization_config"):
            raise UnsupportedModelError(
                f"{folder} holds bitsandbytes 4-bit weights, from which the original values cannot be had back",
                "the full-precision checkpoint " + self.hub_ids[0],
                "export that one with --precision int4",
            )
        return True

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        values = {**CLASS_DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
        slices = {**SLICE_DEFAULTS, **values.get("slice_config", {"max_slice_nums": 1})}
        tokens = {**TOKENS, **values.get("special_token_ids", {})}
        tower, hidden, heads = values["vision_config"], values["hidden_size"], values["num_attention_heads"]
        if values.get("rope_scaling"):
            raise UnsupportedModelError(
                f"rope_scaling is {values['rope_scaling']}", "none, as published", "use the published checkpoint"
            )
        return ModelSpec(
            family=self.name,
            variant=VERSION,
            vision=VisionSpec(
                width=tower["hidden_size"],
                layers=tower["num_hidden_layers"] - int(values["drop_vision_last_layer"]),
                heads=tower["num_attention_heads"],
                mlp_width=tower["intermediate_size"],
                patch_size=tower["patch_size"],
                activation=Activation.GELU_TANH,
                norm_placement=NormPlacement.PRE,
                norm_eps=tower.get("layer_norm_eps", 1e-6),
                positions=PositionKind.INDEXED,
                native_grid=tower["image_size"] // tower["patch_size"],
                grid=None,
            ),
            connector=ResamplerSpec(
                vision_width=tower["hidden_size"],
                width=hidden,
                queries=values["query_num"],
                heads=hidden // 128,
                norm_eps=1e-6,
                fixed_positions=None,
                project_vision=tower["hidden_size"] != hidden,
            ),
            embed=EmbedSpec(values["vocab_size"], hidden),
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
            ),
            image_rows=values["query_num"] * (1 + (slices["max_slice_nums"] if slices["max_slice_nums"] > 1 else 0)),
            runtime={
                "variant": VERSION,
                "image_size": slices["scale_resolution"],
                "patch_size": slices["patch_size"],
                "side": tower["image_size"] // tower["patch_size"],
                "queries": values["query_num"],
                "width": hidden,
                "max_slices": slices["max_slice_nums"],
                "tokens": tokens,
                "max_prompt_tokens": 2048,
            },
            generation={
                "stop_ids": [tokens["eos"], tokens["eot"]],
                "temperature": 0.7,
                "top_p": 0.8,
                "top_k": 100,
                "repetition_penalty": 1.05,
                "max_new_tokens": 1024,
            },
            facts={
                "defaulted_config_keys": sorted(key for key in CLASS_DEFAULTS if config.get(key) is None),
                "pieces_encoded": "one at a time, without the padding of the published batch",
            },
        )

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return WeightMap(weights.rules(spec), source, ignored=(*weights.IGNORED, *unread_head(spec.decoder, weights.HEAD)))


FAMILY = MiniCPMLlama3V()
