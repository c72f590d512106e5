"""Real engines of the golden checkpoints, and the numbers of the very graphs that TensorRT is given.

Engines cannot run without a GPU. What is proven here: TensorRT builds every stage, and the ONNX graph it builds from says
what the PyTorch modules say when ONNX Runtime's processor kernels compute it, cache and all. What TensorRT's own
kernels make of it is for `parity_tests.gpu_check`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.backends.base import Build, BuildOptions
from export.backends.tensorrt import engine as engines
from export.backends.tensorrt.backend import TensorrtBackend, engine_file, record_file
from export.backends.tensorrt.engine import build_stage_engine, engine_graph, engine_profiles, run_request
from export.backends.tensorrt.engine_process import EngineRequest
from export.backends.tensorrt.graph import StageGraph, write_graph
from export.checkpoint.opened import open_folder
from export.graphs.writer import StageWeights
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.trt import TrtBackend, TrtState
from runtime_py.backends.trt_plan import PAST, PRESENT, EnginePlan
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, STAGES, VISION
from runtime_py.errors import DoesNotFitError, MachineError, UnsupportedModelError, UsageError
from targets.base import Limits
from targets.desktop_gpu import TARGET

pytest.importorskip("tensorrt_rtx")
onnxruntime.set_default_logger_severity(3)

GOLDENS = Path(__file__).parents[3] / "parity_tests" / "goldens"
LIMITS = Limits(context=128, prefill_chunk=8)
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2, "int4": 2e-2}
"""Largest difference from the float32 modules (with the same integers for int4) on values up to about 5."""


def make_build(case: str, precision: str, folder: Path) -> Build:
    checkpoint = GOLDENS / case
    opened = open_folder(checkpoint)
    spec, weights = opened.spec, opened.weights
    assert weights is not None
    options = BuildOptions(TARGET, precision, LIMITS)
    assignments = TensorrtBackend().assignments(spec, options)
    codes = RoundToNearest(weights, assignments, GRIDS)
    processor = opened.family.make_processor(spec)
    return Build(spec, options, assignments, weights, codes, opened, folder, lambda *_: None, processor)


@dataclass(frozen=True)
class Traced:
    """A build with its graphs traced once for all tests."""

    build: Build
    graphs: dict[str, StageGraph]

    def reference(self) -> TorchBackend:
        build = self.build
        if build.options.precision != "int4":
            return TorchBackend(build.spec, build.weights)
        return TorchBackend(build.spec, DequantisedWeights(build.weights, build.codes, build.assignments, GRIDS))

    def engine(self, stage: str, folder: Path) -> dict[str, Any]:
        """Build the stage's engine under ``folder`` in a process of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        onnx_file = folder / f"{stage}.onnx"
        source = StageWeights(stage, self.build.weights, self.build.codes, self.build.assignments)
        write_graph(self.graphs[stage], source, onnx_file, lambda *_: None)
        profiles = engine_profiles(self.build.spec, stage, self.build)
        request = EngineRequest(
            onnx_file=str(onnx_file),
            engine_file=str(folder / f"{stage}.engine"),
            flavour="tensorrt-rtx",
            profiles=[{name: [list(s) for s in shapes] for name, shapes in profile.shapes.items()} for profile in profiles],
            attention_inputs=list(self.graphs[stage].attention_inputs),
            batch=1,
            exact=self.build.options.precision == "fp32",
        )
        return run_request(request, folder / "request.json")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Traced]:
    """Graphs of the goldens; vision, connector and embedding are the same at int4 as at fp16 and traced once."""
    graphs: dict[tuple[str, str], Traced] = {}
    for precision, stages in (("fp32", STAGES), ("fp16", STAGES), ("int4", (DECODER,))):
        build = make_build("minicpm-v", precision, tmp_path_factory.mktemp(precision))
        graphs["minicpm-v", precision] = Traced(build, {stage: engine_graph(build, stage) for stage in stages})
    build = make_build("minicpm-v-2", "fp16", tmp_path_factory.mktemp("sliced"))
    graphs["minicpm-v-2", "fp16"] = Traced(build, {stage: engine_graph(build, stage) for stage in (VISION, CONNECTOR)})
    half = graphs["minicpm-v", "fp16"].graphs
    graphs["minicpm-v", "int4"].graphs.update({stage: half[stage] for stage in STAGES if stage != DECODER})
    return graphs


class OrtEngine:
    """Stands where an engine stands: the same graph, in ONNX Runtime on the processor; the cache is NumPy arrays."""

    def __init__(self, plan: EnginePlan, onnx_file: Path) -> None:
        self.plan = plan
        self.session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.calls: list[str] = []

    def run(self, inputs: dict[str, np.ndarray], cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: array.shape for name, array in {**inputs, **cache}.items()}
        self.calls.append(self.plan.profiles[self.plan.choose(shapes)].name)
        wanted = [value.name for value in self.session.get_inputs()]
        names = [value.name for value in self.session.get_outputs()]
        results = dict(zip(names, self.session.run(names, {n: {**inputs, **cache}[n] for n in wanted}), strict=True))
        for name in [name for name in results if name.startswith(PRESENT)]:
            cache[PAST + name.removeprefix(PRESENT)] = results.pop(name)
        return results


class OrtBackedTrt(TrtBackend):
    """The runtime's TensorRT backend, its own code but for the engines and the device."""

    def __init__(self, traced: Traced, folder: Path) -> None:
        build = traced.build
        profiles = {stage: engine_profiles(build.spec, stage, build) for stage in STAGES}
        stages = {
            stage: {"file": f"{stage}.onnx", "profiles": [{"name": p.name, "shapes": p.shapes} for p in of_stage]}
            for stage, of_stage in profiles.items()
        }
        from export.stages import contracts
        from runtime_py.backends.trt_plan import read_plans
        from runtime_py.package.files import rows_of

        for stage in STAGES:
            source = StageWeights(stage, build.weights, build.codes, build.assignments)
            write_graph(traced.graphs[stage], source, folder / f"{stage}.onnx", lambda *_: None)
        dtype = "float32" if build.options.precision == "fp32" else "float16"
        self.block = {"cache": {"capacity": LIMITS.context, "dtype": dtype}, "stages": stages}
        manifest = {
            "backends": {"tensorrt": self.block},
            "contracts": {name: contract.to_json() for name, contract in contracts(build.spec).items()},
            "files": rows_of(folder),
        }
        self.plans = read_plans(folder, manifest)
        self.cuda = NoDevice()  # type: ignore[assignment]
        self._engines = {stage: OrtEngine(self.plans[stage], folder / f"{stage}.onnx") for stage in STAGES}  # type: ignore[misc]
        self._cache = {}
        self._newest = 0

    def _allocate_cache(self) -> dict[str, Any]:
        shapes = self.plans[DECODER].profiles[0].greatest
        dtype = self.block["cache"]["dtype"]
        return {name: np.zeros(shape, dtype) for name, shape in shapes.items() if name.startswith(PAST)}


class NoDevice:
    def make_current(self) -> None:
        return


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
    assert TrtState(8, 1).length == 0


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
