"""The functions of a library by name, with their arguments, as the MLC runtime looks them up.

Source of the names and arguments: mlc-ai/mlc-llm, cpp/serve/function_table.cc and cpp/serve/model.cc. ``image_embed``
takes the engine's four sizes and needs none of them: the picture arrives at the size the library was built for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from export.backends.mlc.block_outputs import BlockOutputs
from export.backends.mlc.model import ModelLibrary, side_inputs
from export.backends.mlc.softmax import softmax_with_temperature
from export.backends.mlc.support import decoder_sides, sequence_sides
from export.stages import contracts
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, TensorContract

UNROUTED = ("prefill", "decode", "batch_prefill", "batch_decode", "batch_verify")
"""Stock functions that a model whose every token needs further inputs, as a routed expert does, cannot offer."""

CACHE_SIZES = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")


def functions(library: ModelLibrary) -> nn.spec.ModuleSpec:
    """The export specification: every function's arguments; a fresh object per call, since exporting consumes it."""
    return _specification(
        library, {**_stage_functions(library), **_decoder_functions(library), **_service_functions(library)}
    )


def block_functions(library: ModelLibrary, blocks: BlockOutputs, stage: str) -> nn.spec.ModuleSpec:
    """The same of a library for checking: one stage's block outputs, and the cache."""
    return _specification(library, {**_block_function(library, blocks, stage), **_service_functions(library)})


def _specification(library: ModelLibrary, methods: Mapping[str, nn.spec.MethodSpec]) -> nn.spec.ModuleSpec:
    return nn.spec.ModuleSpec(library, list(methods), list(methods.values()))


def _stage_functions(library: ModelLibrary) -> dict[str, nn.spec.MethodSpec]:
    stages = contracts(library.model)
    functions = {
        "embed": _method(library.embed, {"ids": nn.spec.Tensor(["seq_len"], "int32")}),
        **_picture_function(library),
        VISION: _method(library.run_vision, _inputs(stages[VISION].inputs)),
        CONNECTOR: _method(library.run_connector, _inputs(stages[CONNECTOR].inputs)),
    }
    sides = [*side_inputs(library.model, VISION), *side_inputs(library.model, CONNECTOR)]
    if sides:
        image = nn.spec.Tensor([1, "height", "width", 3], "uint8")
        functions["image_embed_slice"] = _method(library.image_embed_slice, {"image": image, **_inputs(sides)})
    return functions


def _picture_function(library: ModelLibrary) -> dict[str, nn.spec.MethodSpec]:
    """``image_embed``, where the engine does what is right with its rows; it refuses a picture where there is none."""
    if library.sent is None:
        return {}
    side = library.sent.image_size
    sizes = {name: nn.spec.Int() for name in ("resize_h", "resize_w", "crop_h", "crop_w")}
    return {"image_embed": _method(library.image_embed, {"image": nn.spec.Tensor([1, side, side, 3], "uint8"), **sizes})}


def _decoder_functions(library: ModelLibrary) -> dict[str, nn.spec.MethodSpec]:
    hidden = library.model.decoder.hidden
    cache = nn.spec.Object(object_type=PagedKVCache)
    one, step, steps, draft = (
        nn.spec.Tensor(shape, library.dtype)
        for shape in (
            [1, "seq_len", hidden],
            [1, 1, hidden],
            ["batch_size", 1, hidden],
            [1, "draft_len", hidden],  # without a bound: logits of a whole chunk are not planned for
        )
    )
    positions = nn.spec.Tensor(["outputs"], "int32")
    functions = {
        "prefill": _method(library.prefill, {"embeds": one, "cache": cache}),
        "decode": _method(library.decode, {"embeds": step, "cache": cache}),
        "batch_prefill": _method(library.batch_prefill, {"embeds": one, "logit_positions": positions, "cache": cache}),
        "batch_decode": _method(library.batch_decode, {"embeds": steps, "cache": cache}),
        "batch_verify": _method(library.batch_verify, {"embeds": draft, "cache": cache}),
    }
    sides = decoder_sides(library.model)
    if library.model.decoder.layer_kind.every_token:
        functions = {name: method for name, method in functions.items() if name not in UNROUTED}
    if sides:
        arguments = {"embeds": one, "logit_positions": positions, **_inputs(sides), "cache": cache}
        functions["run_decoder"] = _method(library.run_decoder, arguments)
    each = sequence_sides(library.model) if library.sequences > 1 else []
    if each:
        functions["batch_run_decoder"] = _method(
            library.batch_run_decoder, {"embeds": steps, **_inputs(each), "cache": cache}
        )
    return functions


def _service_functions(library: ModelLibrary) -> dict[str, nn.spec.MethodSpec]:
    logits = nn.spec.Tensor(["batch_size", 1, library.model.decoder.vocabulary], "float32")
    temperature = nn.spec.Tensor(["batch_size"], "float32")
    sizes = {name: nn.spec.Int() for name in CACHE_SIZES}
    return {
        "create_tir_paged_kv_cache": _method(library.create_tir_paged_kv_cache, sizes, params="none"),
        "softmax_with_temperature": _method(
            softmax_with_temperature, {"logits": logits, "temperature": temperature}, params="none"
        ),
    }


def _block_function(library: ModelLibrary, blocks: BlockOutputs, stage: str) -> dict[str, nn.spec.MethodSpec]:
    stages = contracts(library.model)
    ids = {"ids": nn.spec.Tensor(["seq_len"], "int32")}
    embeds = {"embeds": nn.spec.Tensor([1, "seq_len", library.model.decoder.hidden], library.dtype)}
    cache = {"cache": nn.spec.Object(object_type=PagedKVCache)}
    methods = {
        VISION: (library.run_vision, _inputs(stages[VISION].inputs)),
        CONNECTOR: (library.run_connector, _inputs(stages[CONNECTOR].inputs)),
        EMBED: (library.embed, ids),
        DECODER: (library.every_logit, {**embeds, **_inputs(decoder_sides(library.model)), **cache}),
    }
    run, given = methods[stage]
    return {f"{stage}_blocks": _method(blocks.of(stage, run), given)}


def _inputs(tensors: list[TensorContract] | tuple[TensorContract, ...]) -> dict[str, nn.spec.Tensor]:
    """Argument specifications by contract name; one image at a time, so the axis ``images`` is 1."""
    return {
        tensor.name: nn.spec.Tensor(
            [1 if size == "images" else size for size in tensor.shape],
            {"int64": "int32"}.get(tensor.dtype, tensor.dtype),
        )
        for tensor in tensors
    }


def _method(method: Callable[..., Any], arguments: Mapping[str, Any], params: str = "packed") -> nn.spec.MethodSpec:
    return nn.spec.MethodSpec(method, list(arguments), list(arguments.values()), params, "none")
