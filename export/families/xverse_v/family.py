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

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from export.families.base import Family, HubPart
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.documents import read_object, read_optional
from export.families.config.section import Section
from export.families.config.settings import settings_of
from export.families.config.stored import stored_size
from export.families.config.towers import MOST_SIDE, clip_tower
from export.families.xverse_v import weights
from export.families.xverse_v.prompt import prompt
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import EmbedSpec, ImageSpec, MlpConnectorSpec, ModelSpec, SizeRule
from runtime_py.errors import CheckpointError
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

PUBLISHED: dict[str, Any] = {
    "vit_path": "clip-vit",
    "llama_model": "xverse-llm",
    "ckpt": "adapters",
    "lora_r": 128,
    "lora_alpha": 256,
    "prompt_template": "Human: {}\nAssistant: ",
    "end_sym": "<|endoftext|>",
}
"""configs/models/vxverse_13bchat.yaml upstream; config.json comes first. Paths are relative to the checkpoint folder."""


ADAPTERS_FILE = "adapter_and_lora.bin"
"""As published: a pickle whose single key "model" holds the state dict."""

VIEWS = 10
"""The whole picture and nine tiles."""


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
        vit, llm, _ = places_of(config)
        read = CheckpointConfig.of(config, self.published_code(), f"{llm}/config.json")
        whole = read.whole.over(PUBLISHED)
        tower = whole.section("vision_config", f"{vit}/config.json")
        decoder = read.decoder(stored_size(source, f"{weights.LLM}model.embed_tokens.weight", 0))
        vision = clip_tower(tower, 1)
        rows, tile = vision.native_grid**2, tower.integer("image_size", 1, MOST_SIDE, 224)
        rank, alpha = whole.integer("lora_r", 1, 1 << 14), whole.number("lora_alpha", 1e-6, 1e6)
        template = whole.text("prompt_template")
        if template.count("{}") != 1:
            raise whole.wrong("prompt_template", "a text with one {} where the question stands")
        form = prompt(template, whole.text("end_sym"), read.marks(decoder.vocabulary))
        answers = read.answers(decoder.vocabulary, form.stop_ids(), default=3)
        return ModelSpec(
            family=self.name,
            variant="13B",
            vision=vision,
            connector=MlpConnectorSpec(vision.width, decoder.hidden, rows, 1e-5),
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden),
            decoder=decoder,
            image=ImageSpec(vision.patch_size, SizeRule.TILES, tile, tile, CLIP_MEAN, CLIP_STD, VIEWS),
            image_rows=VIEWS * rows,
            runtime={
                "tile": tile,
                "image_size": tile,
                "mean": list(CLIP_MEAN),
                "std": list(CLIP_STD),
                "tile_rows": rows,
                "prompt": form.to_json(),
            },
            generation=answers | {"stop_ids": sorted(answers["stop_ids"])},
            facts={"lora_rank": rank, "lora_scale": alpha / rank},
        )

    def load_config(self, folder: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """config.json of the whole, with the configs of the CLIP and LLM folders put in; the whole's settings come first."""
        own = read_optional(folder / "config.json") if stated is None else dict(stated)
        clip, llm, _ = (folder / place for place in places_of(own))
        parts = {"vision_config": _part(clip).section("vision_config").values or _part(clip).values}
        parts["text_config"] = _part(llm).values
        above = settings_of(folder)
        return PUBLISHED | own | parts | {key: above[key] or value for key, value in settings_of(llm).items()}

    def parts(self, config: Mapping[str, Any]) -> dict[str, str]:
        vit, llm, adapters = places_of(config)
        file = adapters if adapters.endswith(".bin") else f"{adapters}/{ADAPTERS_FILE}"
        return {weights.VIT: vit, weights.LLM: llm, weights.ADAPTERS: file}

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        vit, llm, _ = places_of(config)
        whole, *settings = super().config_files(config).items()
        inner = ("vision_config", "text_config")
        return {
            whole[0]: {name: value for name, value in whole[1].items() if name not in inner},
            f"{vit}/config.json": {"model_type": "clip", "vision_config": config["vision_config"]},
            f"{llm}/config.json": config["text_config"],
        } | {f"{llm}/{file}": value for file, value in settings}

    def side_folders(self, folder: Path, stated: Mapping[str, Any]) -> list[Path]:
        """The whole's own files, then the language model's, with whom the tokenizer is published."""
        return [folder, folder / places_of(stated)[1]]

    def hub_parts(self, hub_id: str) -> tuple[HubPart, ...]:
        vit, llm, adapters = places_of(PUBLISHED)
        return (
            HubPart("openai/clip-vit-large-patch14", vit),
            HubPart("xverse/XVERSE-13B-Chat", llm),
            HubPart(self.hub_ids[0], adapters),
        )

    def open_source(self, folder: Path, stated: Mapping[str, Any] | None = None) -> TensorSource:
        own = read_optional(folder / "config.json") if stated is None else stated
        return weights.open_parts(*(folder / place for place in places_of(own)))

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return weights.weight_map(spec, source, spec.facts["lora_rank"], spec.facts["lora_scale"])


def places_of(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where the CLIP folder, the LLM folder and the adapters lie, relative to the checkpoint's folder.

    Raises:
        CheckpointError: a path that leads out of it.
    """
    settings = Section(config).over(PUBLISHED)
    places = []
    for key in ("vit_path", "llama_model", "ckpt"):
        path = PurePosixPath(settings.text(key))
        if path.is_absolute() or ".." in path.parts or not path.parts or "\x00" in str(path):
            raise settings.wrong(key, "a path inside the checkpoint's folder")
        places.append(str(path))
    return places[0], places[1], places[2]


def _part(folder: Path) -> Section:
    """config.json of one of the parts."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing",
            "the CLIP and LLM folders beside config.json",
            "see docs/families/xverse-v.md for the layout",
        )
    return Section(read_object(path), f"{folder.name}/config.json")


FAMILY = XverseV()
