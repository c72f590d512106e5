"""What a package of the phone's backend takes is counted from shapes: by what each part of it grows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from export.backends.base import BuildOptions, Prediction
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.prediction import compiling_bytes, predict, working_bytes
from export.backends.mlc.schemes import scheme_of
from export.families.registry import families
from export.modules.build import parameter_shapes
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.backends.mlc import PAGE, SPARE_POSITIONS
from runtime_py.contracts import STAGES
from targets.android import TARGET
from targets.base import Limits

LIMITS = Limits(2048, 512)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    family = families()["minicpm-v"]
    return family.spec(family.published_config("", "full"), EmptySource())


def predicted(spec: ModelSpec, precision: str = "int4") -> Prediction:
    options = BuildOptions(TARGET, precision, LIMITS)
    return predict(spec, options, MlcBackend().assignments(spec, options))


def test_weights_are_those_of_the_files(spec: ModelSpec) -> None:
    half, whole = predicted(spec, "fp16"), predicted(spec, "fp32")
    numbers = sum(math.prod(shape) for shape in parameter_shapes(spec).values())
    for made, item in ((half, 2), (whole, 4)):
        assert made.device_bytes["weights"] == sum(made.file_bytes[stage] for stage in STAGES) == item * numbers
        assert set(made.file_bytes) == {*STAGES, "other"}
    tied = replace(spec, decoder=replace(spec.decoder, tied_head=True))
    head = 2 * math.prod(parameter_shapes(spec)["decoder.head.weight"])
    assert half.device_bytes["weights"] - predicted(tied, "fp16").device_bytes["weights"] == head


def test_a_compiler_takes_more_for_every_layer_of_both_towers(spec: ModelSpec) -> None:
    base = compiling_bytes(spec, 1)
    deeper = replace(spec, decoder=replace(spec.decoder, layers=spec.decoder.layers + 3))
    assert compiling_bytes(deeper, 1) - base == 3 * (2 << 20)
    assert compiling_bytes(replace(spec, vision=replace(spec.vision, layers=spec.vision.layers + 3)), 1) - base == 3 * (
        2 << 20
    )
    one_more = compiling_bytes(spec, 2) - base
    assert 440e6 < one_more < base, "the exporter is there once"


def test_the_peak_is_the_compilers_or_that_of_a_wide_connector(spec: ModelSpec) -> None:
    made = predicted(spec)
    assert (made.peak_step, made.export_peak) == ("library", compiling_bytes(spec, 1))
    peaks = []
    for width in (8192, 16384):
        wide = predicted(replace(spec, connector=replace(spec.connector, width=width)))
        assert wide.peak_step == "weights"
        peaks.append(wide.export_peak)
    # three square matrices in float32, and half as much again while they are multiplied
    assert peaks[1] - peaks[0] == 18 * (16384**2 - 8192**2)
    assert peaks[0] - 18 * 8192**2 > 400e6, "beside them the process, and the pieces under way"


def test_the_cache_is_of_whole_pages_and_grows_with_context_and_sequences(spec: ModelSpec) -> None:
    decoder, scheme = spec.decoder, scheme_of("int4")
    position = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * 2
    for context in (PAGE, 2048, 2049):
        held, rest = divmod(working_bytes(spec, Limits(context, 512), scheme)["kv_cache"], position * PAGE)
        needed = context + SPARE_POSITIONS
        assert rest == 0 and needed <= (held - 1) * PAGE < needed + PAGE
    one, four = (working_bytes(spec, Limits(2048, 512, batch), scheme) for batch in (1, 4))
    assert four["kv_cache"] == 4 * one["kv_cache"]
    assert four["logits"] == 4 * one["logits"] == 4 * 3 * 4 * decoder.vocabulary
    assert four["embedding_buffer"] == one["embedding_buffer"] == 512 * decoder.hidden * 2
    assert working_bytes(spec, Limits(2048, 512), scheme_of("fp32"))["embedding_buffer"] == 2 * one["embedding_buffer"]
    assert working_bytes(spec, Limits(2048, 1, 512), scheme)["activations"] == one["activations"], "a token of each sequence"
