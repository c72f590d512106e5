"""Real engines of the golden checkpoints, and the numbers of the very graphs that TensorRT is given.

Engines cannot run without a GPU. What is proven here: TensorRT builds every stage, and the ONNX graph it builds from says
what the PyTorch modules say when ONNX Runtime's processor kernels compute it, cache and all. What TensorRT's own
kernels make of it is for `parity_tests.gpu_check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.backends.tensorrt import engine as engines
from export.backends.tensorrt.backend import engine_file, record_file
from export.backends.tensorrt.conftest import OrtBackedTrt, Traced, make_build
from export.backends.tensorrt.engine import build_stage_engine, engine_graph, run_request
from export.backends.tensorrt.engine_process import EngineRequest
from export.backends.tensorrt.graph import write_graph
from export.graphs.stage_values import StageWeights
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION
from runtime_py.errors import DoesNotFitError, MachineError, UnsupportedModelError, UsageError
from targets.base import Limits

pytest.importorskip("tensorrt_rtx")
onnxruntime.set_default_logger_severity(3)

GOLDENS = Path(__file__).parents[3] / "parity_tests" / "goldens"
LIMITS = Limits(context=128, prefill_chunk=8)
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2, "int4": 2e-2}
"""Largest difference from the float32 modules (with the same integers for int4) on values up to about 5."""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Traced]:
    """Graphs of the goldens; vision, connector and embedding are the same at int4 as at fp16 and traced once."""
    graphs: dict[tuple[str, str], Traced] = {}
    for precision, stages in (("fp32", STAGES), ("fp16", STAGES), ("int4", (DECODER,))):
        build = make_build(GOLDENS / "minicpm-v", precision, tmp_path_factory.mktemp(precision), LIMITS)
        graphs["minicpm-v", precision] = Traced(build, {stage: engine_graph(build, stage) for stage in stages})
    build = make_build(GOLDENS / "minicpm-v-2", "fp16", tmp_path_factory.mktemp("sliced"), LIMITS)
    graphs["minicpm-v-2", "fp16"] = Traced(build, {stage: engine_graph(build, stage) for stage in (VISION, CONNECTOR)})
    half = graphs["minicpm-v", "fp16"].graphs
    graphs["minicpm-v", "int4"].graphs.update({stage: half[stage] for stage in STAGES if stage != DECODER})
    return graphs


@pytest.fixture(scope="module", params=["fp32", "fp16", "int4"])
def both(
    request: pytest.FixtureRequest, traced: dict[tuple[str, str], Traced], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, TorchBackend, OrtBackedTrt]]:
    one = traced["minicpm-v", request.param]
    yield request.param, one.reference(), OrtBackedTrt(one, tmp_path_factory.mktemp(f"ort-{request.param}"))


def test_stages_say_what_the_modules_say(both: tuple[str, TorchBackend, OrtBackedTrt]) -> None:
    precision, reference, ours = both
    draw = np.random.default_rng(0)
    pixels = {"pixel_values": draw.standard_normal((1, 3, 84, 84)).astype(np.float32)}
    vision = reference.run(VISION, pixels)
    ids = {"input_ids": draw.integers(0, 256, (1, 20))}
    for stage, inputs in ((VISION, pixels), (CONNECTOR, vision), (EMBED, ids)):
        (expected,), (output,) = reference.run(stage, inputs).values(), ours.run(stage, inputs).values()
        assert np.abs(output - expected).max() < TOLERANCES[precision], stage


def test_the_decoder_over_its_cache(both: tuple[str, TorchBackend, OrtBackedTrt]) -> None:
    """A prompt longer than a chunk, single tokens, a rewind and a second prompt; all logits, and some."""
    precision, reference, ours = both
    draw = np.random.default_rng(1)
    width = reference.spec.decoder.hidden
    embeds = draw.standard_normal((1, 40, width)).astype(np.float32)
    embeds *= np.array([5.0], np.float32)

    def call(backend: Any, state: Any, start: int, stop: int, wanted: list[int]) -> np.ndarray:
        inputs: Any = {"inputs_embeds": embeds[:, start:stop], "position_ids": np.arange(start, stop)[None]}
        return backend.forward(state, inputs, np.array(wanted))

    theirs, mine = reference.start(64), ours.start(64)
    calls = ((0, 19, list(range(19))), (19, 20, [-1]), (20, 21, [0]), (21, 33, [-1, 0, 5]))
    for start, stop, wanted in calls:
        expected, logits = call(reference, theirs, start, stop, wanted), call(ours, mine, start, stop, wanted)
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < TOLERANCES[precision], (start, stop)
    assert mine.length == 33
    profiles = ours._engines[DECODER].calls  # type: ignore[attr-defined]
    chunk, step = ("prefill", "decode") if precision == "int4" else ("any", "any")
    assert profiles[:5] == [chunk, chunk, chunk, step, step]
    ours.rewind(mine, 20)
    again = call(ours, mine, 20, 21, [0])
    fresh = reference.start(64)
    call(reference, fresh, 0, 20, [0])
    assert np.abs(again - call(reference, fresh, 20, 21, [0])).max() < TOLERANCES[precision]


def test_the_runtime_refuses_what_does_not_fit(both: tuple[str, TorchBackend, OrtBackedTrt]) -> None:
    _, _, ours = both
    width = ours.plans[DECODER].profiles[0].greatest["inputs_embeds"][2]
    old = ours.start(4)
    inputs: Any = {"inputs_embeds": np.zeros((1, 5, width), np.float32), "position_ids": np.arange(5)[None]}
    with pytest.raises(UsageError, match="cache of 4"):
        ours.forward(old, inputs, np.array([-1]))
    ours.start(8)
    with pytest.raises(UsageError, match="taken over"):
        ours.forward(old, inputs, np.array([-1]))
    with pytest.raises(UsageError, match="1 to 128"):
        ours.start(129)
    with pytest.raises(UsageError, match="logit positions"):
        ours.forward(ours.start(8), inputs, np.array([5]))
    with pytest.raises(UsageError, match="was not built for pixel_values"):
        ours.run(VISION, {"pixel_values": np.zeros((1, 3, 98, 84), np.float32)})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_tensorrt_builds_every_stage(precision: str, traced: dict[tuple[str, str], Traced], tmp_path: Path) -> None:
    one = traced["minicpm-v", precision]
    layers = {VISION: one.build.spec.vision.layers, CONNECTOR: 1, EMBED: 0, DECODER: one.build.spec.decoder.layers}
    for stage in STAGES if precision != "int4" else (DECODER,):
        result = one.engine(stage, tmp_path)
        assert (tmp_path / f"{stage}.engine").stat().st_size == result["bytes"] > 100_000
        assert result["attention_layers"] == layers[stage]
        assert not list(tmp_path.glob("*.partial"))


def test_tensorrt_builds_the_free_sizes_of_slices(traced: dict[tuple[str, str], Traced], tmp_path: Path) -> None:
    one = traced["minicpm-v-2", "fp16"]
    for stage in (VISION, CONNECTOR):
        assert one.engine(stage, tmp_path)["bytes"] > 100_000


def test_equal_inputs_give_equal_graphs(traced: dict[tuple[str, str], Traced], tmp_path: Path) -> None:
    """Engines differ from build to build (the manifest says so); what TensorRT is given does not."""
    one = traced["minicpm-v", "int4"]
    source = StageWeights(DECODER, one.build.weights, one.build.codes, one.build.assignments)
    digests = set()
    for graph in (one.graphs[DECODER], engine_graph(one.build, DECODER)):
        files = write_graph(graph, source, tmp_path / "decoder.onnx", lambda *_: None)
        digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(digests) == 1


def test_int4_weights_stay_int4_in_the_engine(traced: dict[tuple[str, str], Traced]) -> None:
    nodes = traced["minicpm-v", "int4"].graphs[DECODER].model.graph.node
    names = [tensor.name for tensor in traced["minicpm-v", "int4"].graphs[DECODER].model.graph.initializer]
    layers = 4 * traced["minicpm-v", "int4"].build.spec.decoder.layers + 1
    assert sum(node.op_type == "DequantizeLinear" for node in nodes) == layers
    assert sum(name.endswith(".weight_codes") for name in names) == layers
    assert not [name for name in names if name.endswith(("qkv.weight", "head.weight", "down.weight"))]


def test_a_step_leaves_the_engine_and_its_record_alone(
    traced: dict[tuple[str, str], Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = traced["minicpm-v", "fp16"]
    monkeypatch.setattr(engines, "engine_graph", lambda build, stage: one.graphs[stage])
    monkeypatch.chdir(tmp_path)  # a relative path means the same to the process that builds
    build_stage_engine(one.build, EMBED, Path(engine_file(EMBED)), Path(record_file(EMBED)))
    assert sorted(path.name for path in (tmp_path / "tensorrt").iterdir()) == ["embed_tokens.engine", "embed_tokens.json"]
    record = json.loads((tmp_path / record_file(EMBED)).read_text())
    assert record["flavour"] in ("tensorrt-rtx", "tensorrt")
    assert record["deterministic"] is False
    assert [profile["name"] for profile in record["profiles"]] == ["decode", "prefill"]


def test_too_little_memory_is_refused_before_anything_is_written(
    traced: dict[tuple[str, str], Traced], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "available_memory", lambda: 100 << 20)
    with pytest.raises(DoesNotFitError, match=r"embed_tokens engine takes about \d+\.\d MiB"):
        build_stage_engine(
            traced["minicpm-v", "fp16"].build, EMBED, tmp_path / engine_file(EMBED), tmp_path / record_file(EMBED)
        )
    assert not list(tmp_path.iterdir())


def test_what_tensorrt_does_not_read_is_said_in_its_words(tmp_path: Path) -> None:
    import onnx

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    request = EngineRequest(str(tmp_path / "odd.onnx"), str(tmp_path / "odd.engine"), "tensorrt-rtx", [], [], 1, False)
    with pytest.raises(UnsupportedModelError, match="NoSuchOperator"):
        run_request(request, tmp_path / "request.json")
    assert not (tmp_path / "odd.engine").exists()


def test_a_build_process_that_dies_is_reported(tmp_path: Path) -> None:
    request = EngineRequest("absent.onnx", str(tmp_path / "x.engine"), "no-such-flavour", [], [], 1, False)
    with pytest.raises(MachineError, match="no-such-flavour is not installed"):
        run_request(request, tmp_path / "request.json")
