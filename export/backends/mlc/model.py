"""The whole model as one Relax module; `function_list` names its functions for the runtime.

embed(ids)                                              [tokens, hidden]
image_embed(image, 4 sizes)                             [rows, hidden]     the square the engine sends; not in every library
image_embed_slice(image, side inputs)                   [rows, hidden]     any grid, where the family slices
vision_encoder(pixel_values, sides), connector(features, sides)            the two stages apart, for checking
prefill, decode, batch_prefill, batch_decode, batch_verify                 logits over the paged cache
run_decoder, batch_run_decoder                                             batch_prefill and batch_decode with side inputs
create_tir_paged_kv_cache, softmax_with_temperature, alloc_embedding_tensor, apply_*_inplace, _metadata
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.target import Target

from export.backends.mlc.blocks.decoder import Decoder, TokenEmbedding
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.rows import last_token, rows_at, same_shape
from export.backends.mlc.kind_blocks import block_of
from export.backends.mlc.overview import Overview, overview_shapes
from export.backends.mlc.support import decoder_sides, explicit_positions, most_patches, sequence_sides
from export.modules.kind import named_class
from export.modules.vision.base import OPEN_TOKENS
from export.quantisation.spec import Assignment
from export.specs import ModelSpec
from export.stages import contracts
from runtime_py.backends.mlc import SPARE_POSITIONS
from runtime_py.contracts import CONNECTOR, DECODER, VISION, TensorContract
from targets.base import Limits


class Constants(nn.Module):
    """Parameters that are no weights: the side inputs of the square overview, stored in float32 (indices are exact)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], integers: Collection[str]) -> None:
        self.integers = integers
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(shape, "float32"))
        self.names = tuple(shapes)

    def values(self) -> dict[str, Tensor]:
        constants = {name: getattr(self, name) for name in self.names}
        return {name: value.astype("int32") if name in self.integers else value for name, value in constants.items()}


class ModelLibrary(nn.Module):
    """One checkpoint's library.

    Args:
        target: device the library is built for, which decides the cache's kernels.
        limits: of which positions in the cache and sequences of a call decide code.
    """

    def __init__(
        self,
        spec: ModelSpec,
        assignments: Mapping[str, Assignment],
        dtype: str,
        overview: Overview,
        target: Target,
        limits: Limits,
    ) -> None:
        layers = Layers(assignments, dtype)
        self.model, self.dtype, self.target, self.sequences = spec, dtype, target, limits.batch
        self.overview_size, self.sent = overview.grid, overview.sent
        tower = named_class(spec.vision, block_of(spec.vision))
        self.vision_encoder = tower(spec.vision, layers, most_patches(spec, limits.context))
        self.connector = named_class(spec.connector, block_of(spec.connector))(spec.connector, layers)
        self.embed_tokens = TokenEmbedding(spec.embed, layers)
        self.decoder = Decoder(spec.decoder, layers)
        integers = frozenset(tensor.name for tensor in self._picture_sides() if tensor.dtype == "int64")
        self.overview = Constants(overview_shapes(spec, overview), integers)

    # the stages before the decoder

    def embed(self, ids: Tensor) -> Tensor:
        return self.embed_tokens(ids)

    def run_vision(self, pixel_values: Tensor, *sides: Tensor) -> Tensor:
        named = self._named(VISION, sides)
        if len(pixel_values.shape) == 3:  # patches already, as the contracts of some towers have them
            return self.vision_encoder(pixel_values.astype(self.dtype), named)
        rows, columns = self._grid(pixel_values, named)
        return self.vision_encoder(self._patches(pixel_values, rows, columns), self._aligned(named, rows * columns))

    def run_connector(self, vision_features: Tensor, *sides: Tensor) -> Tensor:
        return self.connector(vision_features.astype(self.dtype), self._named(CONNECTOR, sides))

    def image_embed(
        self, image: Tensor, resize_h: tirx.Var, resize_w: tirx.Var, crop_h: tirx.Var, crop_w: tirx.Var
    ) -> Tensor:
        """Rows of the picture in the upper left corner of ``image``; cutting its patches leaves the margin out."""
        # the engine passes sizes to resize and crop to; what it sends has the size of the overview already
        rows, columns = self.overview_size
        return self._image_features(image, rows, columns, self.overview.values())

    def image_embed_slice(self, image: Tensor, *sides: Tensor) -> Tensor:
        named = dict(zip([tensor.name for tensor in self._picture_sides()], sides, strict=True))
        rows, columns = self._grid(image, named)
        return self._image_features(image, rows, columns, self._aligned(named, rows * columns))

    def _image_features(self, image: Tensor, rows: Any, columns: Any, sides: dict[str, Tensor]) -> Tensor:
        features = self.connector(self.vision_encoder(self._patches(image, rows, columns), sides), sides)
        return op.reshape(features, (features.shape[1], features.shape[2]))

    def _patches(self, image: Tensor, rows: Any, columns: Any) -> Tensor:
        patches: Tensor = self.vision_encoder.cut(image, rows, columns, self.model.image)
        return patches

    def _grid(self, image: Tensor, sides: dict[str, Tensor]) -> tuple[Any, Any]:
        if "row_weights" in sides:
            return sides["row_weights"].shape[0], sides["column_weights"].shape[0]
        fixed = self.model.vision.structure.grid
        if fixed is not None:
            return fixed
        height, width = image.shape[1:3] if image.dtype == "uint8" else image.shape[2:4]
        return height // self.model.image.patch, width // self.model.image.patch

    def _named(self, stage: str, sides: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip([tensor.name for tensor in side_inputs(self.model, stage)], sides, strict=True))

    def _picture_sides(self) -> list[TensorContract]:
        return [*side_inputs(self.model, VISION), *side_inputs(self.model, CONNECTOR)]

    def _aligned(self, sides: dict[str, Tensor], tokens: Any) -> dict[str, Tensor]:
        """The sides, those along the vision tokens known to have as many rows as the picture has patches."""
        along = {tensor.name for tensor in self._picture_sides() if tensor.shape[0] == OPEN_TOKENS}
        return {name: same_shape(side, [tokens, *side.shape[1:]]) if name in along else side for name, side in sides.items()}

    # the decoder

    def prefill(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        hidden = self.decoder.hidden_states(embeds, cache)
        return self._logits(last_token(hidden)), cache

    def decode(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        return self._logits(self.decoder.hidden_states(embeds, cache)), cache

    def batch_prefill(self, embeds: Tensor, logit_positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        hidden = self.decoder.hidden_states(embeds, cache)
        return self._logits(rows_at(hidden, logit_positions)), cache

    def run_decoder(self, embeds: Tensor, logit_positions: Tensor, *rest: Any) -> tuple[Tensor, PagedKVCache]:
        """`batch_prefill` with the contract's further decoder inputs, for models whose rows or positions differ."""
        *sides, cache = rest
        hidden = self.decoder.hidden_states(embeds, cache, self._decoder_sides(sides))
        return self._logits(rows_at(hidden, logit_positions)), cache

    def every_logit(self, embeds: Tensor, *rest: Any) -> Tensor:
        """Logits of all tokens; ``rest`` is the contract's further decoder inputs and the cache."""
        *sides, cache = rest
        return self._logits(self.decoder.hidden_states(embeds, cache, self._decoder_sides(sides)))

    def _decoder_sides(self, sides: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip([tensor.name for tensor in decoder_sides(self.model)], sides, strict=True))

    def batch_decode(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        if self.sequences > 1 and explicit_positions(self.model.decoder):
            return self._text_step(embeds, cache, {}), cache
        return self.decode(embeds, cache)

    def batch_run_decoder(self, embeds: Tensor, *rest: Any) -> tuple[Tensor, PagedKVCache]:
        """`batch_decode` with those of the contract's further decoder inputs that have a part for each sequence."""
        *given, cache = rest
        sides = dict(zip([tensor.name for tensor in sequence_sides(self.model)], given, strict=True))
        for tensor in contracts(self.model)[DECODER].inputs:
            if tensor.name in sides and tensor.shape[-2:] == ("batch", "tokens"):  # to the blocks, tokens of one sequence
                *axes, sequences, _ = sides[tensor.name].shape
                sides[tensor.name] = op.reshape(sides[tensor.name], (*axes, 1, sequences))
        return self._text_step(embeds, cache, sides), cache

    def _text_step(self, embeds: Tensor, cache: PagedKVCache, sides: dict[str, Tensor]) -> Tensor:
        """Logits (sequences, 1, vocabulary) of embeds (sequences, 1, hidden): to the blocks rows of one sequence."""
        sequences, _, hidden = embeds.shape
        rows = self.decoder.hidden_states(op.reshape(embeds, (1, sequences, hidden)), cache, sides)
        return op.reshape(self._logits(rows), (sequences, 1, self.model.decoder.vocabulary))

    def batch_verify(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        return self.decode(embeds, cache)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden, self.embed_tokens.table)

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: tirx.Var,
        max_total_seq_len: tirx.Var,
        prefill_chunk_size: tirx.Var,
        page_size: tirx.Var,
        support_sliding_window: tirx.Var,
    ) -> PagedKVCache:
        spec = self.model.decoder
        return TIRPagedKVCache(
            attn_kind="mha",
            max_batch_size=max_batch_size,
            max_total_seq_len=max_total_seq_len + SPARE_POSITIONS,
            prefill_chunk_size=prefill_chunk_size,
            page_size=page_size,
            support_sliding_window=support_sliding_window,
            layer_partition=relax.ShapeExpr([0, spec.layers]),
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads,
            qk_head_dim=spec.head_dim,
            v_head_dim=spec.head_dim,
            mla_original_qk_head_dim=0,
            mla_original_v_head_dim=0,
            rope_mode=RopeMode.NONE if explicit_positions(spec) else RopeMode.NORMAL,
            rope_scale=1,
            rope_theta=spec.rope.theta,
            rope_scaling={},
            rope_ext_factors=relax.prim_value(0),
            rotary_dim=spec.rope.dim,
            enable_disaggregation=False,
            dtype=self.dtype,
            target=self.target,
        )


def side_inputs(spec: ModelSpec, stage: str) -> list[TensorContract]:
    """A stage's inputs after its first."""
    return list(contracts(spec)[stage].inputs[1:])
