"""CogVLM2 (image: chat 19B, English and Chinese) and CogVLM2-Video (chat and base).

    pixel_values --EVA2-CLIP-E, 63 blocks, norm on the branch output, class row kept--> vision_features
    vision_features --2 x 2 convolution, GLU, between boi and eoi--> image_features
    input_ids --embed_tokens--> inputs_embeds, placeholder rows overwritten
    inputs_embeds --Llama-3-8B with visual experts (image models)--> logits

All patches of an image share one position id; the cache index does not. The rotary frequencies are read from the
checkpoint, where they are bfloat16. Whether there are visual experts is read from the tensors. config.json has no
model_type. Sources: THUDM/cogvlm2-llama3-chat-19B (kept in Niky-san/cogvlm2_surce at 29bac8a),
THUDM/cogvlm2-llama3-caption (kept in csbhr/Vivid-VR at 38c736a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.families.base import Family
from export.families.cogvlm2 import weights
from export.families.cogvlm2.prompt import ANSWERS, BEGIN, PLACEHOLDER, prompt
from export.families.config.checkpoint_config import CheckpointConfig
from export.families.config.section import architectures
from export.families.config.towers import eva2_clip_tower
from export.modules.connectors.specs import GluConnectorSpec
from export.modules.decoders.specs import VisualExperts
from export.source.tensor_source import TensorSource
from export.specs import EmbedSpec, ImageSpec, ModelSpec, SizeRule
from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD

IMAGE, VIDEO = "CogVLMForCausalLM", "CogVLMVideoForCausalLM"

THETA = 500000.0
"""The rotary base, a literal of the published code; a config that names another is refused."""

FRAMES = 24


class CogVLM2(Family):
    """Zhipu's CogVLM2."""

    tensors = weights.TENSORS

    def recognises(self, config: Mapping[str, Any], folder: Path) -> bool:
        if not {IMAGE, VIDEO} & set(architectures(config)):
            return False
        if "num_multi_query_heads" not in config:
            raise UnsupportedModelError(
                f"{folder} is a first-generation CogVLM",
                "CogVLM2 (num_multi_query_heads in config.json): " + ", ".join(self.hub_ids),
                "use one of those checkpoints",
            )
        return True

    def spec(self, config: Mapping[str, Any], source: TensorSource) -> ModelSpec:
        read = CheckpointConfig.of(config, self.published_code())
        decoder, vision = (
            read.decoder(kv_heads="num_multi_query_heads"),
            eva2_clip_tower(read.whole.section("vision_config")),
        )
        if decoder.rope.theta != THETA:
            raise UnsupportedModelError(
                f"config.json: a rotary base of {decoder.rope.theta:g}, which is not built",
                "500000, a literal of the published code (rope_theta)",
                "use a checkpoint with it; docs/checkpoints.md lists what is read",
            )
        names, video = source.infos, VIDEO in architectures(config)
        experts = any(".vision_mlp." in name for name in names) if names else not video
        stored = any(name.endswith("rotary_emb.inv_freq") for name in names) if names else True
        template = read.whole.choice("template_version", list(ANSWERS))
        grid, size = vision.native_grid, vision.native_grid * vision.patch_size
        rows, vocabulary, code = (grid // 2) ** 2 + 2, decoder.vocabulary, read.code.marks
        stated = {BEGIN: "bos_token_id", PLACEHOLDER: "pad_token_id"}
        marks = {mark: read.token(key, vocabulary, code[mark]) for mark, key in stated.items()}
        form = prompt(template, read.marks(vocabulary, marks))
        runtime: dict[str, Any] = {"video": video, "template": template, "experts": experts, "image_size": size}
        runtime |= {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "rows": rows, "marker_rows": [1, 1], "frames": FRAMES}
        adapter = VisualExperts() if experts else None
        return ModelSpec(
            family=self.name,
            variant=f"{'video' if video else 'image'}-{template}",
            vision=vision,
            connector=GluConnectorSpec(vision.width, decoder.hidden, decoder.mlp_width, grid, 1e-5),
            embed=EmbedSpec(vocabulary, decoder.hidden),
            decoder=replace(decoder, rope=replace(decoder.rope, stored=stored), adapter=adapter),
            image=ImageSpec(vision.patch_size, SizeRule.SQUARE, size, size, CLIP_MEAN, CLIP_STD, FRAMES if video else 1),
            image_rows=rows,
            runtime={**runtime, "prompt": form.to_json()},
            generation=read.answers(vocabulary, form.stop_ids()),
            facts={"visual_experts": experts, "stored_rotary_frequencies": stored},
        )


FAMILY = CogVLM2()
