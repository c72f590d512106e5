"""The contract of every stage, derived from the spec, so that no family restates a tensor name.

The order of a contract's inputs is the order of the stage module's ``forward``; the decoder's cache comes last.
"""

from __future__ import annotations

from export.specs import DecoderSpec, ModelSpec
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, StageContract, TensorContract


def contracts(spec: ModelSpec, dtype: str = "float32") -> dict[str, StageContract]:
    """All stage contracts of a model; ``dtype`` is the float dtype at the borders and in the cache."""
    return {
        VISION: _vision(spec, dtype),
        CONNECTOR: _connector(spec, dtype),
        EMBED: StageContract(
            EMBED,
            (TensorContract("input_ids", "int64", ("batch", "tokens")),),
            (TensorContract("inputs_embeds", dtype, ("batch", "tokens", spec.embed.width)),),
        ),
        DECODER: _decoder(spec.decoder, dtype),
    }


def _vision(spec: ModelSpec, dtype: str) -> StageContract:
    vision = spec.vision
    output = TensorContract("vision_features", dtype, ("images", vision.rows, vision.width))
    return StageContract(VISION, vision.inputs(dtype), (output,))


def _connector(spec: ModelSpec, dtype: str) -> StageContract:
    connector, tokens = spec.connector, spec.vision.rows
    features = TensorContract("vision_features", dtype, ("images", tokens, connector.vision_width))
    rows = TensorContract("image_features", dtype, ("images", connector.rows, connector.width))
    return StageContract(CONNECTOR, (features, *connector.side_inputs(tokens, dtype)), (rows,))


def _decoder(decoder: DecoderSpec, dtype: str) -> StageContract:
    def cache(prefix: str, length: str) -> list[TensorContract]:
        shape = ("batch", decoder.kv_heads, length, decoder.head_dim)
        return [
            TensorContract(f"{prefix}.{layer}.{half}", dtype, shape)
            for layer in range(decoder.layers)
            for half in ("key", "value")
        ]

    axes = (len(decoder.rope.sections),) if decoder.rope.sections else ()
    inputs = [
        TensorContract("inputs_embeds", dtype, ("batch", "tokens", decoder.hidden)),
        TensorContract("attention_mask", "int64", ("batch", "total")),
        TensorContract("position_ids", "int64", (*axes, "batch", "tokens")),
        *decoder.layer_kind.inputs(decoder),
        TensorContract("logit_positions", "int64", ("outputs",), required=False),
        *cache("past_key_values", "past"),
    ]
    outputs = [TensorContract("logits", "float32", ("batch", "outputs", decoder.vocabulary)), *cache("present", "total")]
    return StageContract(DECODER, tuple(inputs), tuple(outputs))
