"""Published tensor names of MiniCPM-Llama3-V 2.5, and how each parameter comes from them.

Names: model.safetensors.index.json of openbmb/MiniCPM-Llama3-V-2_5 (741 tensors), kept in theonlyengine/VQA_Model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from export.families.tensors import PublishedTensors
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.connectors.specs import ResamplerSpec
from export.modules.decoders.llama_weights import ROTARY_BUFFERS, llama_rules
from export.modules.vision.specs import VisionSpec
from export.modules.vision.transformers_weights import idefics2_rules
from export.source.weight_map import Rule, compute
from export.specs import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

HEAD = "llm.lm_head.weight"
IGNORED = (ROTARY_BUFFERS, "resampler.pos_embed")
"""Buffers that nothing reads; the resampler's sine table is not stored by the published class, older copies may hold it."""


def rules(spec: ModelSpec) -> list[Rule]:
    """One rule per parameter of all four stages."""
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, ResamplerSpec)
    shared = [rule for rule in resampler_rules(spec.connector, "resampler.") if rule.target != "connector.query"]
    return [
        *idefics2_rules(spec.vision, "vpm"),
        _query(spec.connector, "resampler."),
        *shared,
        *llama_rules(spec.decoder, "llm.model.", HEAD),
    ]


def _query(spec: ResamplerSpec, prefix: str) -> Rule:
    """The projected query. Unlike 1.0 and 2.0, no position is added to it and no table is stored."""
    width, queries = spec.width, spec.queries
    sources = [
        (f"{prefix}query", (queries, width)),
        (f"{prefix}ln_q.weight", (width,)),
        (f"{prefix}ln_q.bias", (width,)),
        (f"{prefix}attn.in_proj_weight", (3 * width, width)),
        (f"{prefix}attn.in_proj_bias", (3 * width,)),
    ]
    return compute("connector.query", sources, (queries, width), partial(projected_query, eps=spec.norm_eps))


def projected_query(query: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Wq ln_q(query) + bq in float64, from the stacked (3 * width, width) projection; float32 (queries, width)."""
    from torch.nn import functional as F

    width = query.shape[1]
    x = F.layer_norm(query.double(), (width,), scale.double(), shift.double(), eps)
    return (x @ weight[:width].double().T + bias[:width].double()).float()


TENSORS = PublishedTensors(rules, HEAD, IGNORED)
