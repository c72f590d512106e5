"""Awaker2.5-VL: Qwen2-VL-7B with folded LoRA on q, k, v and routed LoRA experts on the other projections.

    pixel_values (patches of any grid) --32 blocks, 2-D rotary--> vision_features
    vision_features --patch merger--> image_features
    input_ids --embed_tokens--> inputs_embeds, image and video rows overwritten
    gate_input (mean embedding of the first user turn) --two gates a layer--> expert and weight
    inputs_embeds --Qwen2 decoder, M-RoPE, W x + w^2 s B_e A_e x + (1 - w) s B_g A_g x--> logits

Published as one file of base and adapters without any config; Qwen/Qwen2-VL-7B-Instruct supplies config and tokenizer, and
without a config.json its values are taken as defaults. The base alone exports too. Sources: MetabrainAGI/Awaker at 08c4796
(README.md, Awaker2.5-VL/peft, Awaker2.5-VL/transformers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.awaker2_5_vl import weights
from export.families.base import Family, HubPart
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import (
    Activation,
    DecoderSpec,
    EmbedSpec,
    ModelSpec,
    PatchMergerSpec,
    RopeSpec,
    RotaryVisionSpec,
    RoutedLora,
)
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

BASE_CONFIG: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "eos_token_id": 151645,
    "vision_config": {},
}
"""Qwen/Qwen2-VL-7B-Instruct, for the published single file that comes without a config."""

VISION_CONFIG = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "in_chans": 3}
VISION_CONFIG |= {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
MOE_CONFIG = {"r": 256, "lora_alpha": 512, "num_experts": 4}
"""Adapter settings from upstream's README; a moe_config.json beside the weights and tensor shapes come first."""

FIXED = {"topk": 1, "g_enable": True, "gates_tmp": 1.0, "token": False}
"""Values of moe_config.json that the decoder is written for."""

GATE_EPS = 1e-6
"""Of a gate's own RMSNorm: a literal in Awaker2.5-VL/peft/tuners/moe/layer.py, whatever ``rms_norm_eps`` says."""

PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}
"""preprocessor_config.json of the base, for checkpoints without that file."""

SETTINGS_FILES = {"moe": "moe_config.json", "preprocessor": "preprocessor_config.json"}
"""Where `load_config` finds what it puts under these names."""


class Awaker25VL(Family):
    """Metabrain's Awaker2.5-VL, and its base Qwen2-VL-7B."""

    name = "awaker2.5-vl"
    aliases = ("awaker", "awaker-2.5-vl")
    processor = "awaker2_5_vl"
    hub_ids = ("MetabrainAGI/Awaker2.5-VL", "Qwen/Qwen2-VL-7B-Instruct")
    licence = "not stated (Awaker2.5-VL); Apache-2.0 (base Qwen2-VL-7B-Instruct)"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        if config:
            return config.get("model_type") == "qwen2_vl"
        bare = folder / "pytorch_model.bin"
        return bare.is_file() and f"{weights.PREFIX}visual.patch_embed.proj.weight" in self.open_source(folder).infos

    def load_config(self, folder: Path) -> dict[str, Any]:
        """config.json over the base's values, with the adapter and preprocessor settings put in."""
        config = BASE_CONFIG | super().load_config(folder)
        for key, name in SETTINGS_FILES.items():
            path = folder / name
            config[key] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return config

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        config = {**BASE_CONFIG, **config}
        tower = {**VISION_CONFIG, **config["vision_config"]}
        moe = {**MOE_CONFIG, **config.get("moe", {})}
        pixels = {**PIXELS, **config.get("preprocessor", {})}
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        low = source.infos.get(f"{weights.PREFIX}model.layers.0.self_attn.o_proj.lora_moe_A.0.weight")
        adapted = low is not None if source.infos else moe["num_experts"] > 0
        gate = source.infos.get(f"{weights.PREFIX}model.layers.0.self_attn.o_proj.w_gate.weight")
        rank, count = low.shape[0] if low else moe["r"], gate.shape[0] if gate else moe["num_experts"]
        other = sorted(name for name, value in FIXED.items() if moe.get(name, value) != value)
        if adapted and other:
            raise UnsupportedModelError(f"other routing: {', '.join(other)}", f"{FIXED}", "correct moe_config.json")
        merge, patch, temporal = tower["spatial_merge_size"], tower["patch_size"], tower["temporal_patch_size"]
        experts = RoutedLora(rank, count, moe["lora_alpha"] / rank, GATE_EPS)
        most = pixels["max_pixels"] // (patch * merge) ** 2
        return ModelSpec(
            family=self.name,
            variant="Awaker2.5-VL" if adapted else "Qwen2-VL",
            vision=RotaryVisionSpec(
                width=tower["embed_dim"],
                layers=tower["depth"],
                heads=tower["num_heads"],
                mlp_width=int(tower["embed_dim"] * tower["mlp_ratio"]),
                patch_values=tower["in_chans"] * temporal * patch * patch,
                activation=Activation.QUICK_GELU,
                norm_eps=1e-6,
                merge=merge,
            ),
            connector=PatchMergerSpec(tower["embed_dim"], hidden, merge, 1e-6),
            embed=EmbedSpec(config["vocab_size"], hidden),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config["num_key_value_heads"],
                head_dim=hidden // heads,
                mlp_width=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                norm_eps=config["rms_norm_eps"],
                rope=RopeSpec(float(config["rope_theta"]), hidden // heads, tuple(config["rope_scaling"]["mrope_section"])),
                max_positions=config["max_position_embeddings"],
                qkv_bias=True,
                tied_head=config["tie_word_embeddings"],
                adapter=experts if adapted else None,
            ),
            image_rows=most,
            runtime={
                "routed": adapted,
                "image_size": overview_side(pixels["max_pixels"], patch * merge),
                "mean": list(pixels.get("image_mean", CLIP_MEAN)),
                "std": list(pixels.get("image_std", CLIP_STD)),
                "patch_size": patch,
                "temporal_patch": temporal,
                "merge": merge,
                "head_dim": tower["embed_dim"] // tower["num_heads"],
                "min_pixels": pixels["min_pixels"],
                "max_pixels": pixels["max_pixels"],
                "vision_start": config["vision_start_token_id"],
                "vision_end": config["vision_end_token_id"],
                "image_pad": config["image_token_id"],
                "video_pad": config["video_token_id"],
                "im_end": config["eos_token_id"],
                "im_start": config["eos_token_id"] - 1,
            },
            generation={
                "stop_ids": [config["eos_token_id"], config.get("bos_token_id", 151643)],
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 1,
                "repetition_penalty": 1.0,
                "max_new_tokens": 512,
            },
            facts={"routed_experts": adapted, "lora_rank": rank, "lora_scale": moe["lora_alpha"] / rank},
        )

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        files: dict[str, Mapping[str, Any]] = {
            "config.json": {name: value for name, value in config.items() if name not in SETTINGS_FILES}
        }
        return files | {file: config[name] for name, file in SETTINGS_FILES.items() if config.get(name)}

    def hub_parts(self, hub_id: str) -> tuple[HubPart, ...]:
        """The adapted model's one file is published alone; config, preprocessing and tokenizer are its base's."""
        adapted, base = self.hub_ids
        return (HubPart(base, "", weights=False), HubPart(adapted, "")) if hub_id.lower() == adapted.lower() else ()

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return weights.weight_map(spec, source)


def overview_side(max_pixels: int, factor: int) -> int:
    """Side of the square picture a phone sends: 448 px, or less where fewer pixels are allowed; no resizing follows."""
    most = int(max_pixels**0.5) // factor
    return factor * max(1, min(448 // factor, most))


FAMILY = Awaker25VL()
