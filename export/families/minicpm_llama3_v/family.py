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
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.pixels import check_pictures
from export.families.config.towers import MOST_SIDE, idefics2_tower
from export.families.minicpm_llama3_v import weights
from export.families.minicpm_llama3_v.prompt import prompt
from export.source.tensor_source import TensorSource
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.preprocess.pixels import HALF

VERSION = "2.5"

SLICE_DEFAULTS = {"patch_size": 14, "max_slice_nums": 9, "scale_resolution": 448}
UNSLICED = {**SLICE_DEFAULTS, "max_slice_nums": 1}
"""Defaults of the published slice configuration; config.json leaves out ``scale_resolution``."""

PICTURES: dict[str, tuple[Any, ...]] = {
    **{key: (list(HALF), HALF[0]) for key in ("image_mean", "image_std", "norm_mean", "norm_std")},
    **{"slice_mode": (True,), "use_image_id": (False,), "im_start": ("<image>",), "im_end": ("</image>",)},
    **{"slice_start": ("<slice>",), "slice_end": ("</slice>",), "unk": ("<unk>",)},
}
"""Values of preprocessor_config.json that are built, beside those of `SLICE_DEFAULTS`."""


class MiniCPMLlama3V(Family):
    """OpenBMB's MiniCPM-Llama3-V 2.5."""

    tensors = weights.TENSORS

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        tower = config.get("vision_config")
        named = isinstance(tower, Mapping) and tower.get("model_type") == "idefics2"
        return config.get("model_type") == "minicpmv" and named and str(config.get("version") or VERSION) == VERSION

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        read = CheckpointConfig.of(config, self.published_code())
        text, decoder = read.text, read.decoder()
        text.only({"mm_use_im_start_end": (True,), "slice_mode": (True,)})
        vision = idefics2_tower(text.section("vision_config"), int(text.flag("drop_vision_last_layer")))
        connector = read.resampler(vision, decoder, "query_num")
        slices = text.section("slice_config").over(SLICE_DEFAULTS if text.has("slice_config") else UNSLICED)
        resolution = slices.integer("scale_resolution", 1, MOST_SIDE)
        patch, most = slices.integer("patch_size", 1, resolution), slices.integer("max_slice_nums", 1, 64)
        text.section("vision_config").only({"patch_size": (patch,)})
        check_pictures(read.pictures, PICTURES)
        read.pictures.only({key: (slices.values[key],) for key in SLICE_DEFAULTS})
        pieces, form = 1 + most if most > 1 else 1, prompt(read.marks(decoder.vocabulary))
        runtime: dict[str, Any] = {"variant": VERSION, "image_size": resolution, "patch_size": patch}
        runtime |= {"side": vision.native_grid, "queries": connector.queries, "width": decoder.hidden, "max_slices": most}
        return ModelSpec(
            family=self.name,
            variant=VERSION,
            vision=vision,
            connector=connector,
            embed=EmbedSpec(decoder.vocabulary, decoder.hidden),
            decoder=decoder,
            image=ImageSpec(patch, SizeRule.SLICES, resolution, resolution, HALF, HALF, pieces),
            image_rows=connector.queries * pieces,
            runtime={**runtime, "prompt": form.to_json()},
            generation=read.answers(decoder.vocabulary, form.stop_ids()),
            facts={
                "defaulted_config_keys": read.defaulted(),
                "pieces_encoded": "one at a time, without the padding of the published batch",
            },
        )


FAMILY = MiniCPMLlama3V()
