"""Storages of weights in engines."""

from __future__ import annotations

import pytest

from export.backends.base import BuildOptions
from export.backends.tensorrt.storages import assign, float_dtype
from export.quantisation.spec import LayerShape, Storage
from runtime_py.errors import UsageError
from targets.desktop_gpu import TARGET


def options(precision: str, **extra: object) -> BuildOptions:
    return BuildOptions(TARGET, precision, TARGET.limits, extra)


def test_only_decoder_matrices_that_whole_blocks_cover_are_quantised() -> None:
    down = assign(LayerShape("decoder.layers.0.mlp.down", "decoder", 2304, 5760), options("int4"))
    assert (down.storage, down.grid) == (Storage.INT4, "trt_int4_b32")
    wide = assign(LayerShape("decoder.layers.0.mlp.down", "decoder", 1152, 4304), options("int4"))
    assert (wide.storage, wide.grid) == (Storage.FP16, "")
    assert wide.reason == "4304 columns are no multiple of 32"
    vision = assign(LayerShape("vision_encoder.blocks.0.mlp.fc1", "vision", 4304, 1152), options("int4"))
    assert vision.storage is Storage.FP16


def test_the_block_size_counts() -> None:
    layer = LayerShape("decoder.head", "head", 256, 96)
    assert assign(layer, options("int4", block_size=32)).grid == "trt_int4_b32"
    assert assign(layer, options("int4", block_size=64)).storage is Storage.FP16


def test_plain_precisions_apply_to_every_layer() -> None:
    layer = LayerShape("decoder.head", "head", 256, 128)
    assert assign(layer, options("fp32")).storage is Storage.FP32
    assert assign(layer, options("fp16")).storage is Storage.FP16
    assert float_dtype(options("fp32")) == "float32"
    assert float_dtype(options("int4")) == "float16"


@pytest.mark.parametrize(("precision", "extra"), [("q4f16_1", {}), ("int4", {"block_size": 48})])
def test_what_no_engine_has_is_refused(precision: str, extra: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        assign(LayerShape("decoder.head", "head", 256, 128), options(precision, **extra))
