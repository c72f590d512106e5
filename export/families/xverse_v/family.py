"""XVERSE-V-13B: CLIP ViT-L/14 at 224 over tiles, LayerNorm + MLP, XVERSE-13B-Chat with folded LoRA.

    pixel_values (1 to 10 views) --23 of 24 blocks, class row dropped--> vision_features
    vision_features --LayerNorm, linear, GELU, linear--> image_features (256 rows a view)
    input_ids --embed_tokens--> inputs_embeds, the picture's rows in place of <ImageHere>
    inputs_embeds --Llama decoder, W + (alpha / r) B A--> logits

Published in three parts (layout.py): a CLIP folder, an LLM folder, and one file of adapters without a config. Source:
xverse-ai/XVERSE-V-13B at 989da86, vxverse/models/*, vxverse/processors/blip_processors.py; PEFT 0.2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.documents import read_optional
from export.families.config.stored import stored_size
from export.families.config.towers import MOST_SIDE, clip_tower
from export.families.xverse_v import weights
from export.families.xverse_v.layout import PUBLISHED, adapters_file, joined_config, parted_files, places_of
from export.families.xverse_v.prompt import prompt
from export.modules.connectors.specs import MlpConnectorSpec
from export.source.tensor_source import TensorSource
from export.source.weight_map import WeightMap
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

VIEWS = 10
"""The whole picture and nine tiles."""


class XverseV(Family):
    """XVERSE's 13B vision-language model; one published checkpoint in three parts."""

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
        runtime = {"tile": tile, "image_size": tile, "mean": list(CLIP_MEAN), "std": list(CLIP_STD), "tile_rows": rows}
        return ModelSpec(
            family=self.name,
            variant="13B",
            vision=vision,
            connector=MlpConnectorSpec(vision.width, decoder.hidden, rows, 1e-5),
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden),
            decoder=decoder,
            image=ImageSpec(vision.patch_size, SizeRule.TILES, tile, tile, CLIP_MEAN, CLIP_STD, VIEWS),
            image_rows=VIEWS * rows,
            runtime={**runtime, "prompt": form.to_json()},
            generation=answers | {"stop_ids": sorted(answers["stop_ids"])},
            facts={"lora_rank": rank, "lora_scale": alpha / rank},
        )

    def load_config(self, folder: Path, stated: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return joined_config(folder, read_optional(folder / "config.json") if stated is None else stated)

    def parts(self, config: Mapping[str, Any]) -> dict[str, str]:
        vit, llm, _ = places_of(config)
        return {weights.VIT: vit, weights.LLM: llm, weights.ADAPTERS: adapters_file(config)}

    def config_files(self, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        return parted_files(config, super().config_files(config))

    def side_folders(self, folder: Path, stated: Mapping[str, Any]) -> list[Path]:
        """The whole's own files, then the language model's, with whom the tokenizer is published."""
        return [folder, folder / places_of(stated)[1]]

    def open_source(self, folder: Path, stated: Mapping[str, Any] | None = None) -> TensorSource:
        own = read_optional(folder / "config.json") if stated is None else stated
        return weights.open_parts(*(folder / place for place in places_of(own)))

    def weight_map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        return weights.weight_map(spec, source, spec.facts["lora_rank"], spec.facts["lora_scale"])


FAMILY = XverseV()
