"""The contract of every stage, derived from the spec, so that no family restates a tensor name."""

from __future__ import annotations

from export.specs import ModelSpec, PositionKind, ResamplerSpec
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
        DECODER: _decoder(spec, dtype),
    }


def _vision(spec: ModelSpec, dtype: str) -> StageContract:
    vision = spec.vision
    if vision.grid is not None:
        size: tuple[int | str, int | str] = (vision.grid[0] * vision.patch_size, vision.grid[1] * vision.patch_size)
        tokens: int | str = vision.grid[0] * vision.grid[1] + int(vision.emit_class_token)
    else:
        size, tokens = ("height", "width"), "vision_tokens"
    inputs = [TensorContract("pixel_values", dtype, ("images", 3, *size))]
    if vision.positions is PositionKind.RESAMPLED:
        inputs.append(TensorContract("row_weights", dtype, ("grid_rows", vision.native_grid)))
        inputs.append(TensorContract("column_weights", dtype, ("grid_columns", vision.native_grid)))
    return StageContract(
        VISION, tuple(inputs), (TensorContract("vision_features", dtype, ("images", tokens, vision.width)),)
    )


def _connector(spec: ModelSpec, dtype: str) -> StageContract:
    connector = spec.connector
    tokens: int | str = "vision_tokens" if connector.fixed_positions is None else connector.fixed_positions
    inputs = [TensorContract("vision_features", dtype, ("images", tokens, connector.vision_width))]
    if isinstance(connector, ResamplerSpec) and connector.fixed_positions is None:
        inputs.append(TensorContract("key_positions", dtype, (tokens, connector.width)))
    output = TensorContract("image_features", dtype, ("images", connector.queries, connector.width))
    return StageContract(CONNECTOR, tuple(inputs), (output,))


def _decoder(spec: ModelSpec, dtype: str) -> StageContract:
    decoder = spec.decoder

    def cache(prefix: str, length: str) -> list[TensorContract]:
        shape = ("batch", decoder.kv_heads, length, decoder.head_dim)
        return [
            TensorContract(f"{prefix}.{layer}.{half}", dtype, shape)
            for layer in range(decoder.layers)
            for half in ("key", "value")
        ]

    inputs = [
        TensorContract("inputs_embeds", dtype, ("batch", "tokens", decoder.hidden)),
        TensorContract("attention_mask", "int64", ("batch", "total")),
        TensorContract("position_ids", "int64", ("batch", "tokens")),
        TensorContract("logit_positions", "int64", ("outputs",), required=False),
        *cache("past_key_values", "past"),
    ]
    outputs = [TensorContract("logits", "float32", ("batch", "outputs", decoder.vocabulary)), *cache("present", "total")]
    return StageContract(DECODER, tuple(inputs), tuple(outputs))
