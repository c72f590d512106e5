"""The whole model as one Relax module with the functions that the MLC runtime looks up by name.

    embed(ids)                                              [tokens, hidden]
    image_embed(image, 4 sizes)                             [rows, hidden]     the square picture the phone's engine sends
    image_embed_slice(image, side inputs)                   [rows, hidden]     any grid, where the family slices
    vision_encoder(pixel_values, sides), connector(features, sides)            the two stages apart, for checking
    prefill, decode, batch_prefill, batch_decode, batch_verify                 logits over the paged cache
    create_tir_paged_kv_cache, softmax_with_temperature, alloc_embedding_tensor, apply_*_inplace, _metadata

Source of the names and arguments: mlc-ai/mlc-llm, cpp/serve/function_table.cc and cpp/serve/model.cc. ``image_embed``
takes the engine's four sizes and needs none of them: the picture arrives at the size the library was built for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from tvm import relax, te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache, RopeMode, TIRPagedKVCache
from tvm.target import Target

from calibrate.spec import Assignment
from export.backends.mlc.blocks.decoder import Decoder, TokenEmbedding
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.blocks.projections import GluConnector, MlpConnector, PatchMerger, WindowConnector
from export.backends.mlc.blocks.resampler import Resampler
from export.backends.mlc.blocks.rotary_vision import RotaryVisionTransformer, cut_merge_patches
from export.backends.mlc.blocks.vision import VisionTransformer, cut_patches
from export.backends.mlc.overview import Overview, overview_shapes, patch_side
from export.backends.mlc.support import decoder_sides, explicit_positions
from export.specs import (
    GluConnectorSpec,
    MlpConnectorSpec,
    ModelSpec,
    PatchMergerSpec,
    ResamplerSpec,
    RotaryVisionSpec,
    RoutedLora,
    VisionSpec,
    WindowConnectorSpec,
)
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, VISION, TensorContract

VISION_BLOCKS = {VisionSpec: VisionTransformer, RotaryVisionSpec: RotaryVisionTransformer}
CONNECTOR_BLOCKS = {
    ResamplerSpec: Resampler,
    MlpConnectorSpec: MlpConnector,
    WindowConnectorSpec: WindowConnector,
    GluConnectorSpec: GluConnector,
    PatchMergerSpec: PatchMerger,
}


class Constants(nn.Module):
    """Parameters that are no weights: the side inputs of the square overview, stored in float32 (indices are exact)."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], integers: Collection[str]) -> None:
        self.integers = integers
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(shape, "float32"))
        self.names = tuple(shapes)

    def values(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in self.names}
        return {name: value.astype("int32") if name in self.integers else value for name, value in found.items()}


class ModelLibrary(nn.Module):
    """One checkpoint's library.

    Args:
        target: device the library is built for, which decides the cache's kernels.
    """

    def __init__(
        self, spec: ModelSpec, assignments: Mapping[str, Assignment], dtype: str, overview: Overview, target: Target
    ) -> None:
        layers = Layers(assignments, dtype)
        self.model, self.dtype, self.overview_size, self.target = spec, dtype, overview.grid, target
        self.vision_encoder = VISION_BLOCKS[type(spec.vision)](spec.vision, layers)
        self.connector = CONNECTOR_BLOCKS[type(spec.connector)](spec.connector, layers)
        self.embed_tokens = TokenEmbedding(spec.embed, layers)
        self.decoder = Decoder(spec.decoder, layers)
        sides = [*side_inputs(spec, VISION), *side_inputs(spec, CONNECTOR)]
        integers = frozenset(tensor.name for tensor in sides if tensor.dtype == "int64")
        self.overview = Constants(overview_shapes(spec, overview), integers)

    # the stages before the decoder

    def embed(self, ids: Tensor) -> Tensor:
        return self.embed_tokens(ids)

    def run_vision(self, pixel_values: Tensor, *sides: Tensor) -> Tensor:
        named = self._named(VISION, sides)
        if isinstance(self.model.vision, RotaryVisionSpec):
            return self.vision_encoder(pixel_values.astype(self.dtype), named)
        rows, columns = self._grid(pixel_values, named)
        return self.vision_encoder(self._patches(pixel_values, rows, columns), _aligned(named, rows * columns))

    def run_connector(self, vision_features: Tensor, *sides: Tensor) -> Tensor:
        return self.connector(vision_features.astype(self.dtype), self._named(CONNECTOR, sides))

    def image_embed(
        self, image: Tensor, resize_h: tirx.Var, resize_w: tirx.Var, crop_h: tirx.Var, crop_w: tirx.Var
    ) -> Tensor:
        rows, columns = self.overview_size
        return self._image_features(image, rows, columns, self.overview.values())

    def image_embed_slice(self, image: Tensor, *sides: Tensor) -> Tensor:
        named = dict(zip(self._slice_names(), sides, strict=True))
        rows, columns = self._grid(image, named)
        return self._image_features(image, rows, columns, _aligned(named, rows * columns))

    def _image_features(self, image: Tensor, rows: Any, columns: Any, sides: dict[str, Tensor]) -> Tensor:
        features = self.connector(self.vision_encoder(self._patches(image, rows, columns), sides), sides)
        return op.reshape(features, (features.shape[1], features.shape[2]))

    def _patches(self, image: Tensor, rows: Any, columns: Any) -> Tensor:
        mean, deviation = (self.model.runtime.get(name, HALF) for name in ("mean", "std"))
        vision = self.model.vision
        if isinstance(vision, RotaryVisionSpec):
            return cut_merge_patches(
                image, rows, columns, patch_side(self.model), vision.merge, (mean, deviation), self.dtype
            )
        return cut_patches(image, rows, columns, vision.patch_size, self.dtype, (mean, deviation))

    def _grid(self, image: Tensor, sides: dict[str, Tensor]) -> tuple[Any, Any]:
        if "row_weights" in sides:
            return sides["row_weights"].shape[0], sides["column_weights"].shape[0]
        if isinstance(self.model.vision, VisionSpec) and self.model.vision.grid is not None:
            return self.model.vision.grid
        height, width = image.shape[1:3] if image.dtype == "uint8" else image.shape[2:4]
        return height // patch_side(self.model), width // patch_side(self.model)

    def _named(self, stage: str, sides: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip([tensor.name for tensor in side_inputs(self.model, stage)], sides, strict=True))

    def _slice_names(self) -> list[str]:
        return [tensor.name for stage in (VISION, CONNECTOR) for tensor in side_inputs(self.model, stage)]

    # the decoder

    def prefill(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        hidden = self.decoder.hidden_states(embeds, cache)
        return self._logits(_last_token(hidden)), cache

    def decode(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        return self._logits(self.decoder.hidden_states(embeds, cache)), cache

    def batch_prefill(self, embeds: Tensor, logit_positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        hidden = self.decoder.hidden_states(embeds, cache)
        return self._logits(_rows_at(hidden, logit_positions)), cache

    def run_decoder(self, embeds: Tensor, logit_positions: Tensor, *rest: Any) -> tuple[Tensor, PagedKVCache]:
        """`batch_prefill` with the contract's further decoder inputs, for models whose rows or positions differ."""
        *sides, cache = rest
        named = dict(zip([tensor.name for tensor in decoder_sides(self.model)], sides, strict=True))
        hidden = self.decoder.hidden_states(embeds, cache, named)
        return self._logits(_rows_at(hidden, logit_positions)), cache

    def batch_decode(self, embeds: Tensor, cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        return self.decode(embeds, cache)

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
            max_total_seq_len=max_total_seq_len,
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

    def softmax_with_temperature(self, logits: Tensor, temperature: Tensor) -> Tensor:
        return op.tensor_expr_op(_softmax_with_temperature, "softmax_with_temperature_kernel", [logits, temperature])

    def functions(self) -> nn.spec.ModuleSpec:
        """The export specification: every function's arguments; a fresh object per call, since exporting consumes it."""
        hidden, vocabulary = self.model.decoder.hidden, self.model.decoder.vocabulary
        rows, columns = self.overview_size
        patch = patch_side(self.model)
        cache = nn.spec.Object(object_type=PagedKVCache)
        one, step, steps, draft = (
            nn.spec.Tensor(shape, self.dtype)
            for shape in (
                [1, "seq_len", hidden],
                [1, 1, hidden],
                ["batch_size", 1, hidden],
                [1, "draft_len", hidden],  # without a bound: logits of a whole chunk are not planned for
            )
        )
        positions = nn.spec.Tensor(["outputs"], "int32")
        image = nn.spec.Tensor([1, rows * patch, columns * patch, 3], "uint8")
        sizes = {name: nn.spec.Int() for name in ("resize_h", "resize_w", "crop_h", "crop_w")}
        logits = nn.spec.Tensor(["batch_size", 1, vocabulary], "float32")
        temperature = nn.spec.Tensor(["batch_size"], "float32")
        methods = {
            "embed": _method(self.embed, {"ids": nn.spec.Tensor(["seq_len"], "int32")}),
            "image_embed": _method(self.image_embed, {"image": image, **sizes}),
            **self._stage_functions(),
            "prefill": _method(self.prefill, {"embeds": one, "cache": cache}),
            "decode": _method(self.decode, {"embeds": step, "cache": cache}),
            "batch_prefill": _method(self.batch_prefill, {"embeds": one, "logit_positions": positions, "cache": cache}),
            "batch_decode": _method(self.batch_decode, {"embeds": steps, "cache": cache}),
            "batch_verify": _method(self.batch_verify, {"embeds": draft, "cache": cache}),
            "create_tir_paged_kv_cache": _method(
                self.create_tir_paged_kv_cache, {name: nn.spec.Int() for name in CACHE_SIZES}, params="none"
            ),
            "softmax_with_temperature": _method(
                self.softmax_with_temperature, {"logits": logits, "temperature": temperature}, params="none"
            ),
        }
        if isinstance(self.model.decoder.adapter, RoutedLora):
            methods = {name: method for name, method in methods.items() if name not in UNROUTED}
        if decoder_sides(self.model):
            sides = {tensor.name: _tensor_spec(tensor) for tensor in decoder_sides(self.model)}
            arguments = {"embeds": one, "logit_positions": positions, **sides, "cache": cache}
            methods["run_decoder"] = _method(self.run_decoder, arguments)
        return nn.spec.ModuleSpec(self, list(methods), list(methods.values()))

    def _stage_functions(self) -> dict[str, nn.spec.MethodSpec]:
        stages = contracts(self.model)
        methods = {VISION: self.run_vision, CONNECTOR: self.run_connector}
        found = {
            name: _method(method, {tensor.name: _tensor_spec(tensor) for tensor in stages[name].inputs})
            for name, method in methods.items()
        }
        sides = [*side_inputs(self.model, VISION), *side_inputs(self.model, CONNECTOR)]
        if sides:
            image = nn.spec.Tensor([1, "height", "width", 3], "uint8")
            arguments = {"image": image, **{tensor.name: _tensor_spec(tensor) for tensor in sides}}
            found["image_embed_slice"] = _method(self.image_embed_slice, arguments)
        return found


UNROUTED = ("prefill", "decode", "batch_prefill", "batch_decode", "batch_verify")
"""Stock functions that a model whose every token needs a routed expert cannot offer."""

CACHE_SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")


def side_inputs(spec: ModelSpec, stage: str) -> list[TensorContract]:
    """A stage's inputs after its first."""
    return list(contracts(spec)[stage].inputs[1:])


HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of families whose settings name none."""


def _tensor_spec(tensor: TensorContract) -> nn.spec.Tensor:
    """One image at a time: the axis ``images`` is 1."""
    dtype = {"int64": "int32"}.get(tensor.dtype, tensor.dtype)
    return nn.spec.Tensor([1 if size == "images" else size for size in tensor.shape], dtype)


def _method(method: Callable[..., Any], arguments: Mapping[str, Any], params: str = "packed") -> nn.spec.MethodSpec:
    return nn.spec.MethodSpec(method, list(arguments), list(arguments.values()), params, "none")


def _last_token(x: Tensor) -> Tensor:
    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute((x.shape[0], 1, x.shape[2]), lambda b, _, n: x[b, x.shape[1] - 1, n], name="last_token")

    return op.tensor_expr_op(compute, "last_token", [x])


def _rows_at(x: Tensor, positions: Tensor) -> Tensor:
    """x (batch, tokens, width) at int32 positions (outputs,)."""

    def compute(x: te.Tensor, positions: te.Tensor) -> te.Tensor:
        shape = (x.shape[0], positions.shape[0], x.shape[2])
        return te.compute(shape, lambda b, t, n: x[b, positions[t], n], name="rows_at")

    return op.tensor_expr_op(compute, "rows_at", [x, positions])


TOKEN_SIDES = ("patch_positions", "rotary_angles", "key_positions")
"""Side inputs whose first axis is the vision tokens."""


def _aligned(sides: dict[str, Tensor], tokens: Any) -> dict[str, Tensor]:
    """The sides, those along the vision tokens known to have as many rows as the picture has patches."""
    return {
        name: _same_shape(side, [tokens, *side.shape[1:]]) if name in TOKEN_SIDES else side for name, side in sides.items()
    }


def _same_shape(x: Tensor, shape: list[Any]) -> Tensor:
    """``x`` known to have ``shape``; the virtual machine checks it."""
    builder = relax.BlockBuilder.current()
    return Tensor(_expr=builder.match_cast(x._expr, relax.TensorType(shape, x.dtype)))


def _softmax_with_temperature(logits: te.Tensor, temperature: te.Tensor) -> te.Tensor:
    """softmax(logits / temperature); at a temperature of 0 the largest logits share the probability."""
    batch, vocabulary = logits.shape[0], logits.shape[2]
    i, j = (te.reduce_axis((0, vocabulary), name=name) for name in "ij")
    largest = te.compute((batch,), lambda b: te.max(logits[b, 0, i], axis=i), name="largest")

    def weight(b: tirx.Var, v: tirx.Var) -> tirx.Expr:
        cold = temperature[b] <= tirx.const(1e-5, "float32")
        divisor = tirx.Select(cold, tirx.const(1.0, "float32"), temperature[b])
        hot = tirx.exp((logits[b, 0, v] - largest[b]) / divisor)
        return tirx.Select(cold, (logits[b, 0, v] == largest[b]).astype("float32"), hot)

    total = te.compute((batch,), lambda b: te.sum(weight(b, j), axis=j), name="total")
    return te.compute(logits.shape, lambda b, _, v: weight(b, v) / total[b], name="probabilities")
