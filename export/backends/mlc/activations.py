"""Bytes of the buffers that a library's memory plan needs, by formula from shapes.

A plan lays buffers that live at different times into shared storage, so these are not sums over operators. The formulas
follow what apache-tvm's planner (relax.transform.StaticPlanBlockMemory) makes of our blocks; a test holds them against it.
"""

from __future__ import annotations

from export.backends.mlc.support import score_blocks
from export.modules.connectors.specs import GluConnectorSpec, PatchMergerSpec, ResamplerSpec, WindowConnectorSpec
from export.specs import DecoderSpec, ModelSpec, RoutedLora, VisionSpec

ROWS_AT_ONCE = 6.5
"""Buffers of the residual stream's size in a vision block: the stream, a norm, q, k, v, and what is being joined."""


def decoder_activations(decoder: DecoderSpec, tokens: int, item: int) -> int:
    """Prefill of ``tokens``: the residual stream, a norm, and the widest buffers of a layer that live together.

    Adapted rows whose number is not bounded (image rows of an open grid) are not planned and not counted.
    """
    qkv = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    wide = max(qkv + decoder.heads * decoder.head_dim, 3 * decoder.mlp_width)
    if isinstance(decoder.adapter, RoutedLora):
        return tokens * (6 * decoder.hidden + 2 * wide) * item
    return tokens * (3 * decoder.hidden + wide) * item


def image_activations(spec: ModelSpec, item: int) -> int:
    """``image_embed``: float32 scores of one block of queries, their softmax or the MLP in their place, and rows.

    Sizes are those of the overview, the one picture whose size the library knows.
    """
    vision = spec.vision
    side = spec.image.overview // spec.image.patch
    tokens = side * side + int(isinstance(vision, VisionSpec) and vision.class_token)
    scores = vision.heads * tokens * -(-tokens // score_blocks(vision.heads, tokens, tokens))
    rows = ROWS_AT_ONCE * tokens * vision.width + 2 * connector_rows(spec, side * side) * spec.connector.width
    return int(4 * scores + item * (max(scores, tokens * vision.mlp_width) + rows))


def connector_rows(spec: ModelSpec, patches: int) -> int:
    """Rows that the connector makes of the overview's patches."""
    match spec.connector:
        case ResamplerSpec(queries=queries):
            return queries
        case PatchMergerSpec(merge=side) | WindowConnectorSpec(kernel=side):
            return patches // side**2
        case GluConnectorSpec():
            return patches // 4
    return patches
