"""Qwen2-VL.

    pixel_values (patches of any grid) --32 blocks, 2-D rotary--> vision_features
    vision_features --patch merger--> image_features
    input_ids --embed_tokens--> inputs_embeds, image and video rows overwritten
    inputs_embeds --Qwen2 decoder, M-RoPE--> logits

Sources: transformers v4.45.0 and v5.24.0, models/qwen2_vl; config, preprocessing and generation settings of
Qwen/Qwen2-VL-7B-Instruct.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.pixels import (
    LEAST_DEVIATION,
    LEAST_MEAN,
    check_clips,
    check_pictures,
    colours,
    pixel_bounds,
)
from export.families.config.towers import qwen2_tower
from export.families.qwen2_vl import weights
from export.families.qwen2_vl.prompt import STATED, prompt
from export.modules.connectors.specs import PatchMergerSpec
from export.source.tensor_source import TensorSource
from export.source.training_names import renamed
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

PIXELS = (3136, 12845056)
"""preprocessor_config.json of the published checkpoint, for folders without that file."""

CLASS_PIXELS = (3136, 1003520)
"""What the published class takes where the file is there and does not say (``Qwen2VLImageProcessor``, 4.45 and 5.24)."""

CLASS_CLIP_PIXELS = (100352, 602112)
"""The same of a frame where video_preprocessor_config.json is there and does not say (``Qwen2VLVideoProcessor``, 5.24).
Without that file frames are prepared as pictures, as the class of 4.45 has it, and 5.24 where pictures have bounds.
"""

PHONE_SIDE = 448
"""Pixels along a side of the square picture that a phone sends, where the bounds allow it."""


class Qwen2VL(Family):
    """Alibaba's Qwen2-VL."""

    tensors = weights.TENSORS

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        read = CheckpointConfig.of(config, self.published_code())
        decoder, vocabulary = read.decoder(axes=3), read.text.integer("vocab_size", 1, 1 << 22)
        tied = read.whole.flag("tie_word_embeddings", False) or decoder.tied_head
        tower = qwen2_tower(read.whole.section("vision_config"), decoder.hidden)
        factor = tower.patch * tower.merge
        stated = {mark: read.token(key, vocabulary) for mark, key in STATED.items()}
        form = prompt(read.marks(vocabulary, stated))
        geometry = {"patch_size": tower.patch, "merge_size": tower.merge, "temporal_patch_size": tower.temporal}
        built: dict[str, tuple[Any, ...]] = {"resample": (3,), **{key: (value,) for key, value in geometry.items()}}
        check_pictures(read.pictures, built)
        least, most = pixel_bounds(read.pictures, factor, CLASS_PIXELS if read.pictures.values else PIXELS)
        mean = colours(read.pictures, "image_mean", LEAST_MEAN, CLIP_MEAN)
        deviation = colours(read.pictures, "image_std", LEAST_DEVIATION, CLIP_STD)
        overview = overview_side(most, factor)
        runtime: dict[str, Any] = {"image_size": overview, "mean": list(mean), "std": list(deviation)}
        runtime |= {"patch_size": tower.patch, "temporal_patch": tower.temporal, "merge": tower.merge}
        runtime |= {"head_dim": tower.spec.head_dim, "min_pixels": least, "max_pixels": most}
        if read.clips.values:
            check_clips(read.clips, built, mean, deviation)
            bounds = pixel_bounds(read.clips, factor, CLASS_CLIP_PIXELS)
            runtime |= {"clip_pixels": list(bounds)} if bounds != (least, most) else {}
        return ModelSpec(
            family=self.name,
            variant="Qwen2-VL",
            vision=tower.spec,
            connector=PatchMergerSpec(tower.spec.width, decoder.hidden, tower.merge, 1e-6),
            embed=EmbedSpec(vocabulary, decoder.hidden),
            decoder=replace(decoder, qkv_bias=True, tied_head=tied),
            image=ImageSpec(tower.patch, SizeRule.AREA, overview, overview, mean, deviation),
            image_rows=most // factor**2,
            runtime={**runtime, "prompt": form.to_json()},
            generation=read.answers(vocabulary, form.stop_ids()),
        )

    def open_source(self, folder: Path, stated: Mapping[str, Any] | None = None) -> TensorSource:
        """Under the names of the published files, which trainers that save a state dictionary as it is do not write."""
        return renamed(super().open_source(folder, stated), weights.MODULES)


def overview_side(max_pixels: int, factor: int) -> int:
    """Side of the square picture a phone sends, a multiple of ``factor``: 448 px, or less where fewer pixels are allowed."""
    most = int(max_pixels**0.5) // factor
    return factor * max(1, min(PHONE_SIDE // factor, most))


FAMILY = Qwen2VL()
