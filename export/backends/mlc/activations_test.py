"""Predicted activation memory against what the compiler's own planning gives, at published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tvm
from tvm.target import Target

from export.backends.base import BuildOptions
from export.backends.mlc.activations import decoder_activations, image_activations
from export.backends.mlc.backend import MlcBackend
from export.backends.mlc.compile_process import LibraryRequest
from export.backends.mlc.library import TARGETS, bounds_of, build_module
from export.backends.mlc.overview import Overview, overview_sides
from export.backends.mlc.package_parts import declared_parameters
from export.backends.mlc.passes.attach_metadata import memory_usage
from export.backends.mlc.passes.pipeline import lowered, memory_planned
from export.backends.mlc.schemes import scheme_of
from export.backends.mlc.support import most_patches, overview_rows, score_blocks
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.backends.stock_engine import SentPicture
from targets.android import TARGET
from targets.base import Limits

LIMITS = Limits(context=2048, prefill_chunk=512)
HALF = 2
LAYERS = 2
"""Layers run one after the other in the same storage, so two of them plan like forty."""


def published(family: str) -> ModelSpec:
    record = families()[family]
    spec = record.spec(record.published_config("", "full"), EmptySource())
    return replace(spec, vision=replace(spec.vision, layers=LAYERS), decoder=replace(spec.decoder, layers=LAYERS))


def planned(spec: ModelSpec) -> dict[str, int]:
    """Bytes of planned buffers per function, no kernel compiled; buffers of unbounded symbolic size are not counted."""
    options = BuildOptions(TARGET, "int4", LIMITS)
    assignments, scheme = MlcBackend().assignments(spec, options), scheme_of("int4")
    side, rows = spec.image.overview, overview_rows(spec)
    sides = overview_sides(spec, families()[spec.family].make_processor(spec), rows)
    grid = (side // spec.image.patch, side // spec.image.patch)
    overview = Overview(SentPicture(side, side, 1, rows), grid, sides)
    parameters = tuple(declared_parameters(spec, assignments, scheme, overview))
    request = LibraryRequest("planned_name", "planned", spec, assignments, scheme, LIMITS, overview, parameters)
    target = Target(TARGETS["android"])
    module, _ = build_module(request, "android")
    with target, tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": False}):
        return memory_usage(memory_planned()(lowered(bounds_of(request))(module)))


@pytest.mark.slow
@pytest.mark.parametrize("family", list(families()))
def test_predictions_are_those_of_the_plan(family):
    """A picture's within 5 %, as its buffers are planned like the compiler's; the decoder's formula within 15 %."""
    spec = published(family)
    memory = planned(spec)
    prefill = max(memory.get(name, 0) for name in ("prefill", "run_decoder"))
    assert image_activations(spec, HALF) == pytest.approx(memory["image_embed"], rel=0.05)
    assert decoder_activations(spec.decoder, LIMITS.prefill_chunk, HALF) == pytest.approx(prefill, rel=0.15)


def test_scores_of_a_large_picture_are_never_held_whole():
    spec = published("cogvlm2")
    tokens = most_patches(spec, LIMITS.context)
    assert tokens == 96 * 96 + 1
    assert score_blocks(spec.vision.heads, tokens, tokens) == 21
    assert image_activations(spec, HALF) < 4 * spec.vision.heads * tokens * tokens / 6
