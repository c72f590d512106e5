"""Published tensor names of MiniCPM-V 1.0 and 2.0, and how each parameter comes from them."""

from __future__ import annotations

from export.families.tensors import PublishedTensors
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.connectors.specs import ResamplerSpec
from export.modules.decoders.llama_weights import ROTARY_BUFFERS, llama_rules
from export.modules.vision.specs import VisionSpec
from export.modules.vision.timm_weights import timm_rules
from export.source.weight_map import Rule
from export.specs import ModelSpec

HEAD = "llm.lm_head.weight"
IGNORED = (ROTARY_BUFFERS,)


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, ResamplerSpec)
    return [
        *timm_rules(spec.vision, "vpm."),
        *resampler_rules(spec.connector, "resampler."),
        *llama_rules(spec.decoder, "llm.model.", HEAD),
    ]


TENSORS = PublishedTensors(rules, HEAD, IGNORED)
