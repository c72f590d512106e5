"""Every family's graphs for TensorRT: what they compute, that a profile takes every call, and what is refused by name.

The graphs run in ONNX Runtime in place of engines, under the runtime's own code, for whole prompts of the goldens: chunks
without a picture row, single tokens, pictures of free sizes. Engines are built for a few under the mark slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx")

from export.backends.base import BuildOptions
from export.backends.tensorrt.backend import TensorrtBackend, engine_file, record_file
from export.backends.tensorrt.conftest import OrtBackedTrt, Traced, make_build
from export.backends.tensorrt.engine import build_stage_engine, engine_graph
from export.backends.tensorrt.kernels import OPSET, TrtKernels
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.families.registry import families
from export.graphs.trace import trace_stage
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.source.tensor_source import EmptySource
from parity_tests.golden.case import question, read_case
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.probes import record
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import DECODER, STAGES
from runtime_py.errors import UnsupportedModelError
from runtime_py.generation.session import Limits as SessionLimits
from targets.base import Limits
from targets.desktop_gpu import TARGET

GOLDENS = Path(__file__).parents[3] / "parity_tests" / "goldens"
LIMITS = Limits(context=128, prefill_chunk=16)
CASES = ("omnilmm-12b", "wemm", "xverse-v", "awaker2.5-vl", "cogvlm2", "cogvlm2-video")
VIDEO = ("cogvlm2", "video-chat")
"""Another decoder than the picture model's: no visual experts."""

RELATIVE = 2e-2
"""Largest difference over the largest value, float16 arithmetic against float32 modules with the same integers."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("name", CASES)
def test_whole_prompts_through_the_graphs(name: str, precision: str, tmp_path: Path) -> None:
    build = make_build(GOLDENS / name, precision, tmp_path, LIMITS)
    ours = OrtBackedTrt(Traced(build, {stage: engine_graph(build, stage) for stage in STAGES}), tmp_path)
    weights = DequantisedWeights(build.weights, build.codes, build.assignments, GRIDS)
    reference = TorchBackend(build.spec, weights if precision == "int4" else build.weights)
    case, processor = read_case(GOLDENS / name), build.processor
    for prefix in case.prefixes:
        asked = question(case, prefix, processor)
        limits = SessionLimits(LIMITS.context, LIMITS.prefill_chunk)
        expected = record(reference, processor, limits, asked, 4)
        said = record(ours, processor, limits, asked, 4, expected.fed)
        for row in compare_recordings(expected, said):
            if row.probe != "greedy_ids":
                assert row.metrics["relative_max"] < RELATIVE, (prefix, row)
    assert len(set(ours._engines[DECODER].calls)) == (2 if precision == "int4" else 1)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize(("name", "variant"), [*((name, "") for name in families() if name != "minicpm-v"), VIDEO])
def test_every_engine_of_every_family_is_built(name: str, variant: str, precision: str, tmp_path: Path) -> None:
    folder = synthesize(SynthesisRequest(name, "tiny", tmp_path / "checkpoint", variant, "float32")).folder
    build = make_build(folder, precision, tmp_path / "package", LIMITS)
    TensorrtBackend().refuse(build.spec, build.options)
    (build.folder / "tensorrt").mkdir(parents=True)
    for stage in STAGES if precision == "fp16" else (DECODER,):
        build_stage_engine(build, stage, build.folder / engine_file(stage), build.folder / record_file(stage))
        assert (build.folder / engine_file(stage)).stat().st_size > 100_000


def test_heads_that_the_compiler_fails_on_are_refused_before_any_work(tmp_path: Path) -> None:
    build = make_build(GOLDENS / "cogvlm2", "fp16", tmp_path, LIMITS)
    assert build.spec.decoder.head_dim == 12
    with pytest.raises(UnsupportedModelError, match="decoder: attention heads of 12 channels"):
        TensorrtBackend().steps(build)
    TensorrtBackend().refuse(make_build(GOLDENS / "wemm", "int4", tmp_path, LIMITS).spec, build.options)


@pytest.mark.parametrize("precision", TARGET.precisions)
@pytest.mark.parametrize("name", families())
def test_no_published_checkpoint_is_refused(name: str, precision: str) -> None:
    family = families()[name]
    for hub_id in family.hub_ids:
        spec = family.spec(family.published_config(hub_id, "full"), EmptySource())
        TensorrtBackend().refuse(spec, BuildOptions(TARGET, precision, TARGET.limits.capped(spec.decoder.max_positions)))


def test_no_node_has_a_name_that_the_parser_makes_up(tmp_path: Path) -> None:
    """The parser calls a further layer of node N ``N_1``, ``N_2``, ..., and fails when a node is called so."""
    build = make_build(GOLDENS / "wemm", "int4", tmp_path, LIMITS)
    graph = engine_graph(build, DECODER)
    names = [node.name for node in graph.model.graph.node]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.rpartition("_")[2].isdecimal()]
    plain = trace_stage(build.spec, DECODER, TrtKernels(build.assignments, LIMITS.context), opset=OPSET)
    assert [name for name in (node.name for node in plain.graph.node) if name.rpartition("_")[2].isdecimal()]
