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
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.towers import MOST_SIDE, SIGLIP_SO400M, timm_tower
from export.families.minicpm_v import weights
from export.families.minicpm_v.prompt import prompt
from export.source.tensor_source import TensorSource
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.pixels import HALF


class MiniCPMV(Family):
    """OpenBMB's MiniCPM-V; 2.5 and later have other decoders and towers and are refused by name."""

    tensors = weights.TENSORS

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        if config.get("model_type") != "minicpmv":
            return False
        version = config.get("version")
        if version is not None or "vision_config" in config:
            raise UnsupportedModelError(
                f"{folder} is MiniCPM-V {str(version or '2.5 or later')[:20]}, which has another tower and decoder",
                "MiniCPM-V 1.0 or 2.0: " + ", ".join(self.hub_ids),
                "use one of those checkpoints; docs/families/minicpm-v.md lists what is built",
            )
        return True

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        read = CheckpointConfig.of(config, self.published_code())
        text, decoder = read.text, read.decoder()
        tower_name, sliced = text.text("vision_encoder", SIGLIP_SO400M.name), text.flag("slice_mode", False)
        text.only({"mm_use_im_start_end": (True,)})
        if not tower_name.startswith(SIGLIP_SO400M.name):
            raise text.unsupported("vision_encoder", SIGLIP_SO400M.name)
        image_size = text.integer("image_size", 1, MOST_SIDE)
        dropped = int(text.flag("drop_vision_last_layer"))
        vision = timm_tower(SIGLIP_SO400M, text, dropped, None if sliced else image_size)
        text.only({"patch_size": (vision.patch_size,)})
        connector = read.resampler(vision, decoder, "query_num")
        resolution = text.integer("scale_resolution", vision.patch_size, MOST_SIDE)
        slices = text.integer("max_slice_nums", 1, 64)
        pieces, form = 1 + slices if sliced else 1, prompt(read.marks(decoder.vocabulary), sliced)
        rule, typical = (SizeRule.SLICES, resolution) if sliced else (SizeRule.SQUARE, image_size)
        version = "2.0" if sliced else "1.0"
        runtime: dict[str, Any] = {"variant": version, "image_size": image_size, "patch_size": vision.patch_size}
        runtime |= {"native_grid": vision.native_grid, "queries": connector.queries, "width": decoder.hidden}
        runtime |= {"scale_resolution": resolution, "max_slices": slices}
        return ModelSpec(
            family=self.name,
            variant=version,
            vision=vision,
            connector=connector,
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden, text.number("scale_emb", 1e-6, 1e6)),
            decoder=replace(
                decoder,
                residual_scale=text.number("scale_depth", 1e-6, 1e6) / math.sqrt(decoder.layers),
                logit_divisor=decoder.hidden / text.number("dim_model_base", 1e-6, 1e6),
            ),
            image=ImageSpec(vision.patch_size, rule, image_size, typical, HALF, HALF, pieces),
            image_rows=connector.queries * pieces,
            runtime={**runtime, "prompt": form.to_json()},
            generation=read.answers(decoder.vocabulary, form.stop_ids(), name=version),
            facts={"defaulted_config_keys": read.defaulted(), "vision_tower": tower_name},
        )


FAMILY = MiniCPMV()
