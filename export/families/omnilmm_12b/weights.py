"""Published tensor names of OmniLMM-12B, and how each parameter comes from them."""

from __future__ import annotations

from export.families.tensors import PublishedTensors
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.connectors.specs import ResamplerSpec
from export.modules.decoders.llama_weights import ROTARY_BUFFERS, llama_rules
from export.modules.vision.specs import VisionSpec
from export.modules.vision.timm_weights import timm_rules
from export.source.weight_map import Rule
from export.specs import ModelSpec

TOWER = "model.vision_tower."


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, ResamplerSpec)
    return [
        *timm_rules(spec.vision, TOWER, split_bias=True),
        *resampler_rules(spec.connector, "model.resampler."),
        *llama_rules(spec.decoder),
    ]


def unused_block(spec: ModelSpec) -> tuple[str, ...]:
    """The tower's last block, which is stored and never run."""
    assert isinstance(spec.vision, VisionSpec)
    return (f"{TOWER}blocks.{spec.vision.layers}.*",)


TENSORS = PublishedTensors(rules, ignored=(ROTARY_BUFFERS,), unread=unused_block)
