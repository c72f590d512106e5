"""Predicted against measured peaks of real builds (docs/targets/desktop-gpu.md says how they were measured)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from export.backends.base import BuildOptions
from export.backends.tensorrt.backend import TensorrtBackend
from export.backends.tensorrt.prediction import activation_bytes, cache_bytes, engine_peak, predict, stage_bytes
from export.families.minicpm_v.family import FAMILY
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION
from targets.base import Limits
from targets.desktop_gpu import TARGET

MEASURED = [
    (VISION, "fp16", 26, 2081),
    (VISION, "fp16", 4, 615),
    (CONNECTOR, "fp16", 0, 387),
    (EMBED, "fp16", 0, 1468),
    (DECODER, "int4", 4, 1897),
    (DECODER, "int4", 12, 2781),
    (DECODER, "int4", 40, 5985),
    (DECODER, "fp16", 4, 3278),
    (DECODER, "fp16", 8, 4634),
]
"""Stage, precision, layers (0: as published), peak resident MB; MiniCPM-V 1.0 at a context of 4096, chunks of 1024,
tensorrt-rtx 1.7.1.116."""


def spec_with(stage: str, layers: int) -> ModelSpec:
    spec = FAMILY.spec(FAMILY.published_config("1.0", "full"), EmptySource())
    if layers and stage == DECODER:
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, layers=layers))
    if layers and stage == VISION:
        return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, layers=layers))
    return spec


@pytest.mark.parametrize(("stage", "precision", "layers", "megabytes"), MEASURED)
def test_the_peak_of_a_build_is_predicted_within_15_percent(stage: str, precision: str, layers: int, megabytes: int) -> None:
    spec = spec_with(stage, layers)
    options = BuildOptions(TARGET, precision, TARGET.limits)
    size = stage_bytes(spec, stage, options, TensorrtBackend().assignments(spec, options))
    assert abs(engine_peak(size) / 1e6 / megabytes - 1) < 0.15


def test_weights_and_cache_of_the_published_model() -> None:
    spec = spec_with(DECODER, 0)
    options = BuildOptions(TARGET, "int4", TARGET.limits)
    assignments = TensorrtBackend().assignments(spec, options)
    size = stage_bytes(spec, DECODER, options, assignments)
    decoder, rows = spec.decoder, 122768
    per_layer = decoder.hidden * (4 * decoder.hidden + 3 * decoder.mlp_width)
    values = decoder.layers * per_layer + rows * decoder.hidden
    assert size.int4 == values // 2 + values // 32 * 2
    assert size.largest_codes == rows * decoder.hidden
    assert size.floats == 2 * (2 * decoder.layers + 1) * decoder.hidden
    assert cache_bytes(spec, options) == 2 * 40 * 36 * 64 * 4096 * 2
    several = dataclasses.replace(options, limits=dataclasses.replace(options.limits, batch=8))
    assert cache_bytes(spec, several) == 8 * cache_bytes(spec, options)
    assert activation_bytes(spec, several) == activation_bytes(spec, options)
    memory = predict(spec, options, assignments)
    assert memory.peak_step == "tensorrt decoder"
    assert set(memory.file_bytes) == set(STAGES)
    assert memory.export_peak > engine_peak(size)


def test_activations_are_those_of_a_call_or_of_a_picture_whichever_is_larger() -> None:
    spec = spec_with(DECODER, 0)

    def of(chunk: int, batch: int = 1, context: int = 4096, precision: str = "int4", **decoder: Any) -> int:
        changed = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, **decoder))
        return activation_bytes(changed, BuildOptions(TARGET, precision, Limits(context, chunk, batch)))

    assert of(1) == of(8) < of(1024) == of(8, batch=1024), "a picture beside short calls, a token of each sequence"
    assert of(1, precision="fp32") == 2 * of(1)
    assert of(1024, context=8192) - of(1024) == 1024 * 4096, "a mask of bytes"
    assert of(1024, vocabulary=spec.decoder.vocabulary + 10) - of(1024) == 1024 * 10 * (2 + 4), "logits in both types"
    assert of(1024, kv_heads=spec.decoder.kv_heads + 1) - of(1024) == 1024 * 2 * spec.decoder.head_dim * 2
    assert of(2048) == 2 * of(1024), "every token takes as much"


def test_a_cache_in_float32_takes_twice_as_much() -> None:
    spec = spec_with(DECODER, 0)
    whole, half = (cache_bytes(spec, BuildOptions(TARGET, precision, TARGET.limits)) for precision in ("fp32", "fp16"))
    assert whole == 2 * half
