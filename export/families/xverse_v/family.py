"""XVERSE-V-13B: CLIP ViT-L/14 at 224 over tiles, LayerNorm + MLP, XVERSE-13B-Chat with folded LoRA.

    pixel_values (1 to 10 views) --23 of 24 blocks, class row dropped--> vision_features
    vision_features --LayerNorm, linear, GELU, linear--> image_features (256 rows a view)
    input_ids --embed_tokens--> inputs_embeds, the picture's rows in place of <ImageHere>
    inputs_embeds --Llama decoder, W + (alpha / r) B A--> logits

Published in three parts: a CLIP folder, an LLM folder, and one file of adapters without a config. The settings live in
yaml upstream; here in a config.json beside the parts (docs/families/xverse-v.md shows one). Source: xverse-ai/XVERSE-V-13B
at 989da86, vxverse/models/*, vxverse/processors/blip_processors.py; PEFT 0.2.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family, HubPart
from export.families.xverse_v import weights
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import (
    Activation,
    DecoderSpec,
    EmbedSpec,
    MlpConnectorSpec,
    ModelSpec,
    NormPlacement,
    PositionKind,
    RopeSpec,
    VisionSpec,
)
from runtime_py.errors import CheckpointError
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

SETTINGS: dict[str, Any] = {
    "vit_path": "clip-vit",
    "llama_model": "xverse-llm",
    "ckpt": "adapters",
    "lora_r": 128,
    "lora_alpha": 256,
    "prompt_template": "Human: {}\nAssistant: ",
}
"""configs/models/vxverse_13bchat.yaml upstream; config.json comes first. Paths are relative to the checkpoint folder."""

ADAPTERS_FILE = "adapter_and_lora.bin"
"""As published: a pickle whose single key "model" holds the state dict."""


class XverseV(Family):
    """XVERSE's 13B vision-language model; one published checkpoint in three parts."""

    name = "xverse-v"
    aliases = ("xverse-v-13b",)
    processor = "xverse_v"
    hub_ids = ("xverse/XVERSE-V-13B",)
    licence = "Apache-2.0 (code); XVERSE model licence (weights: research free, commercial use free after application)"

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        return config.get("arch") == "vxverse"

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        settings = {**SETTINGS, **config}
        vision, llm, generation = settings["vision_config"], settings["text_config"], settings["generation_config"]
        width, hidden, heads = vision["hidden_size"], llm["hidden_size"], llm["num_attention_heads"]
        side = vision["image_size"] // vision["patch_size"]
        embedding = source.infos.get(f"{weights.LLM}model.embed_tokens.weight")
        vocabulary = embedding.shape[0] if embedding else llm["vocab_size"]
        return ModelSpec(
            family=self.name,
            variant="13B",
            vision=VisionSpec(
                width=width,
                layers=vision["num_hidden_layers"] - 1,
                heads=vision["num_attention_heads"],
                mlp_width=vision["intermediate_size"],
                patch_size=vision["patch_size"],
                activation=Activation.QUICK_GELU,
                norm_placement=NormPlacement.PRE,
                norm_eps=vision.get("layer_norm_eps", 1e-5),
                positions=PositionKind.FIXED,
                native_grid=side,
                grid=(side, side),
                patch_bias=False,
                class_token=True,
                input_norm=True,
                final_norm=False,
            ),
            connector=MlpConnectorSpec(width, hidden, side * side, 1e-5),
            embed=EmbedSpec(vocabulary, hidden),
            decoder=DecoderSpec(
                hidden=hidden,
                layers=llm["num_hidden_layers"],
                heads=heads,
                kv_heads=llm.get("num_key_value_heads", heads),
                head_dim=hidden // heads,
                mlp_width=llm["intermediate_size"],
                vocabulary=vocabulary,
                norm_eps=llm.get("rms_norm_eps", 1e-6),
                rope=RopeSpec(float(llm.get("rope_theta", 10000.0)), hidden // heads),
                max_positions=llm["max_position_embeddings"],
                tied_head=llm.get("tie_word_embeddings", False),
            ),
            image_rows=10 * side * side,
            runtime={
                "tile": vision["image_size"],
                "image_size": vision["image_size"],
                "mean": list(CLIP_MEAN),
                "std": list(CLIP_STD),
                "tile_rows": side * side,
                "prompt_template": settings["prompt_template"],
                "end": settings.get("end_sym", "<|endoftext|>"),
            },
            generation={
                "stop_ids": sorted({generation.get("eos_token_id", 3), 2}),
                "temperature": generation.get("temperature", 0.5),
                "top_p": generation.get("top_p", 0.85),
                "top_k": generation.get("top_k", 30),
                "repetition_penalty": generation.get("repetition_penalty", 1.1),
                "max_new_tokens": generation.get("max_new_tokens", 2048),
            },
            facts={"lora_rank": settings["lora_r"], "lora_scale": settings["lora_alpha"] / settings["lora_r"]},
        )

    def load_config(self, folder: Path) -> dict[str, Any]:
        """config.json of the whole, with the configs of the CLIP and LLM folders put in."""
        settings = {**SETTINGS, **_json(folder / "config.json")}
        clip = _json(folder / settings["vit_path"] / "config.json")
        vision = clip.get("vision_config", clip)
        defaults = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        defaults |= {"patch_size": 14, "image_size": 224, "layer_norm_eps": 1e-5}
        generation = folder / settings["llama_model"] / "generation_config.json"
        return settings | {
            "vision_config": {**defaults, **vision},
            "text_config": _json(folder / settings["llama_model"] / "config.json"),
            "generation_config": _json(generation) if generation.is_file() else {},
        }

    def parts(self, config: Mapping[str, Any]) -> dict[str, str]:
        settings = {**SETTINGS, **config}
        adapters = settings["ckpt"] if settings["ckpt"].endswith(".bin") else f"{settings['ckpt']}/{ADAPTERS_FILE}"
        return {weights.VIT: settings["vit_path"], weights.LLM: settings["llama_model"], weights.ADAPTERS: adapters}

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        settings = {**SETTINGS, **config}
        inner = ("vision_config", "text_config", "generation_config")
        vit, llm = settings["vit_path"], settings["llama_model"]
        return {
            "config.json": {name: value for name, value in config.items() if name not in inner},
            f"{vit}/config.json": {"model_type": "clip", "vision_config": config["vision_config"]},
            f"{llm}/config.json": config["text_config"],
            f"{llm}/generation_config.json": config["generation_config"],
        }

    def side_folders(self, folder: Path) -> list[Path]:
        """The whole's own files, then the language model's, with whom the tokenizer is published."""
        return [folder, folder / {**SETTINGS, **_json(folder / "config.json")}["llama_model"]]

    def hub_parts(self, hub_id: str) -> tuple[HubPart, ...]:
        places = {name: SETTINGS[name] for name in ("vit_path", "llama_model", "ckpt")}
        return (
            HubPart("openai/clip-vit-large-patch14", places["vit_path"]),
            HubPart("xverse/XVERSE-13B-Chat", places["llama_model"]),
            HubPart(self.hub_ids[0], places["ckpt"]),
        )

    def open_source(self, folder: Path) -> TensorSource:
        return weights.open_parts(folder, {**SETTINGS, **_json(folder / "config.json")})

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return weights.weight_map(spec, source, spec.facts["lora_rank"], spec.facts["lora_scale"])


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing",
            "the CLIP and LLM folders beside config.json",
            "see docs/families/xverse-v.md for the layout",
        )
    return json.loads(path.read_text(encoding="utf-8"))


FAMILY = XverseV()
