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
from typing import Any

from export.families.base import Family
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.stored import stored_size
from export.families.config.towers import EVA02_ENORMOUS, MOST_SIDE, timm_tower
from export.families.config.vocabulary import known_marks
from export.families.omnilmm_12b import weights
from export.families.omnilmm_12b.prompt import PICTURE_MARKS, prompt
from export.source.tensor_source import TensorSource
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD


class OmniLMM12B(Family):
    """OpenBMB's 12B model; one published checkpoint."""

    tensors = weights.TENSORS

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        read = CheckpointConfig.of(config, self.published_code())
        text, decoder = read.text, read.decoder(stored_size(source, "model.embed_tokens.weight", 0))
        text.only({"mm_use_im_start_end": (True,)})
        side = text.integer("image_size", 1, MOST_SIDE)
        vision = timm_tower(EVA02_ENORMOUS, text, 1, side)
        connector = read.resampler(vision, decoder, "num_query")
        marks = read.marks(decoder.vocabulary, {"<s>": read.token("bos_token_id", decoder.vocabulary, 1)})
        form = prompt(marks | known_marks(read.whole, PICTURE_MARKS, decoder.vocabulary))
        colours = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)}
        return ModelSpec(
            family=self.name,
            variant="12B",
            vision=vision,
            connector=connector,
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden),
            decoder=decoder,
            image=ImageSpec(vision.patch_size, SizeRule.SQUARE, side, side, CLIP_MEAN, CLIP_STD),
            image_rows=connector.queries,
            runtime={"image_size": side, **colours, "queries": connector.queries, "prompt": form.to_json()},
            generation=read.answers(decoder.vocabulary, form.stop_ids(), default=2),
            facts={"defaulted_config_keys": read.defaulted()},
        )


FAMILY = OmniLMM12B()
