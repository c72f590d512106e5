"""A package whose cache holds bytes: what its graphs say, that rows stay apart, and who is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.choices import choices
from export.backends.onnx.conftest import EXACT, TARGET, Package, decoded, export, prefill
from export.backends.onnx.consumers.held import Tool, obstacles
from export.modules.kernels import Kernels
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.request import ExportRequest
from parity_tests.reference.arithmetic import Arithmetic, ArithmeticKernels
from runtime_py.backends import ort_providers
from runtime_py.backends.base import Arrays
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import MANY_ROWS
from runtime_py.contracts import DECODER
from runtime_py.errors import MachineError, UsageError

ALONE = {name: value for name, value in EXACT.items() if name != "cache"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("bytes")
    return export("minicpm-v", "int4", folder, **ALONE, cache_precision="int8", prefill_precision="int8")


@pytest.fixture
def backend(package: Package) -> OrtBackend:
    return OrtBackend(package.folder, package.manifest, threads=1)


@pytest.fixture
def first(package: Package) -> OrtBackend:
    """The package without its second decoder."""
    block = {key: value for key, value in package.manifest["backends"]["onnx"].items() if key != MANY_ROWS}
    return OrtBackend(package.folder, {**package.manifest, "backends": {"onnx": block}}, threads=1)


def test_both_decoders_keep_bytes_by_the_same_scales(package: Package) -> None:
    block = package.manifest["backends"]["onnx"]
    assert block["cache"] == "int8"
    for file in (block["stages"][DECODER]["file"], block[MANY_ROWS]["file"]):
        onnx.checker.check_model(str(package.folder / file))
        model = onnx.load(str(package.folder / file), load_external_data=False)
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
        assert {kind for name, kind in kinds.items() if ".key" in name or ".value" in name} == {onnx.TensorProto.INT8}
        attended = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
        assert len(attended) == package.spec.decoder.layers
        for layer, node in enumerate(attended):
            assert list(node.input[7:]) == [""] * 5 + [
                f"layers.{layer}.attention.attend.{x}_scale" for x in ("key", "value")
            ]
        places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
        of_scales = [place for name, place in places.items() if name.endswith(("key_scale", "value_scale"))]
        assert {place["location"] for place in of_scales} == {f"{Path(block['stages'][DECODER]['file']).name}_data"}


def test_it_says_what_a_decoder_says_that_rounds_keys_and_values(package: Package, first: OrtBackend) -> None:
    assert package.build.cache_scales is not None
    weights = DequantisedWeights(package.build.weights, package.build.codes, package.build.assignments, GRIDS)
    embeds = package.golden["inputs_embeds"]

    def wanted(kernels: Kernels) -> np.ndarray:
        return decoded(package.spec, weights, kernels, embeds)

    rounded, plain = wanted(ArithmeticKernels(Arithmetic(cache=package.build.cache_scales))), wanted(Kernels())
    scale = np.abs(plain).max()
    costs = np.abs(rounded - plain).max() / scale
    for chunk in (64, 3, 1):
        said = prefill(first, embeds, chunk)[1]
        # a key or value on a boundary may go to the next byte
        assert np.abs(said - rounded).max() / scale < 0.2 * costs
    assert 1e-4 < costs < 5e-2


def test_answers_in_company_are_answers_alone_and_caches_are_copied_and_cut(package: Package, first: OrtBackend) -> None:
    drawn, hidden = np.random.default_rng(3), package.spec.decoder.hidden
    prompts = [drawn.standard_normal((1, length, hidden)).astype(np.float32) for length in (5, 9, 3)]
    tokens = [drawn.standard_normal((1, 1, hidden)).astype(np.float32) for _ in prompts]
    assert first.why_not_batched(2) == ""

    def fed(array: np.ndarray, start: int) -> Arrays:
        return {"inputs_embeds": array, "position_ids": np.arange(start, start + array.shape[1])[None]}

    def read(states: list, who: int) -> None:  # type: ignore[type-arg]
        first.prefill(states[who], fed(prompts[who], 0), np.array([-1]))

    together = first.start_batch(4, 32)
    for who in range(3):
        read(list(together), who)
    steps = [fed(token, prompt.shape[1]) for token, prompt in zip(tokens, prompts, strict=True)]
    said = first.forward_batch([together[2], together[0], together[1]], [steps[2], steps[0], steps[1]])
    for who, logits in zip((2, 0, 1), said, strict=True):
        state = first.start(32)
        first.prefill(state, fed(prompts[who], 0), np.array([-1]))
        alone = first.forward(state, steps[who], np.array([-1]))[0]
        np.testing.assert_allclose(logits, alone, atol=1e-5 * np.abs(alone).max())
        assert {value.numpy().dtype for value in state.buffers.values()} == {np.dtype(np.int8)}
    # a copy of a beginning goes on as the beginning alone does
    first.copy_prefix(together[1], together[3], 4)
    first.rewind(together[1], 4)
    after = [first.forward(state, fed(tokens[0], 4), np.array([-1])) for state in (together[3], together[1])]
    np.testing.assert_array_equal(after[0], after[1])


def test_a_cache_moves_between_both_decoders(package: Package, backend: OrtBackend, first: OrtBackend) -> None:
    embeds = package.golden["inputs_embeds"][:, :7]
    fed = {"inputs_embeds": embeds, "position_ids": np.arange(7)[None]}
    step = {"inputs_embeds": embeds[:, :1], "position_ids": np.array([[7]])}
    states = [each.start(32) for each in (backend, first)]
    read = [each.prefill(state, fed, np.array([-1])) for each, state in zip((backend, first), states, strict=True)]
    said = [each.forward(state, step, np.array([-1])) for each, state in zip((backend, first), states, strict=True)]
    for one, other in (read, said):
        assert 0 < np.abs(one - other).max() < 0.1 * np.abs(other).max()


def test_a_cache_of_bytes_is_half_of_one_in_float16(package: Package) -> None:
    backend = OnnxBackend()
    kept = []
    for extra in ({}, {"cache_precision": "int8"}):
        options = BuildOptions(TARGET, "int4", TARGET.limits, extra)
        assignments = backend.assignments(package.spec, options)
        kept.append(backend.predict(package.spec, options, assignments).device_bytes["kv_cache"])
        told = " ".join(backend.notes(package.spec, options, assignments))
        assert ("--calibration" in told) is bool(extra)
    assert kept[0] == 2 * kept[1]
    predicted, found = package.prediction.file_bytes[DECODER], package.sizes()[DECODER]
    assert abs(predicted - found) < 0.02 * found + 20_000


def test_tools_that_were_not_seen_to_hold_it_get_no_files(package: Package) -> None:
    kept = package.manifest["backends"]["onnx"]["kept_from_tools_by"]
    assert kept == {str(tool): ["the cache is int8"] for tool in Tool}
    assert all(obstacles(package.spec, tool, "float16") == () for tool in Tool)
    assert not list(package.folder.rglob("genai*"))


def test_another_cache_is_refused_beside_it() -> None:
    options = BuildOptions(TARGET, "int4", TARGET.limits, {"cache": "float32", "cache_precision": "int8"})
    with pytest.raises(UsageError, match="--cache-dtype and --cache-precision"):
        choices(options)


@pytest.mark.parametrize(("target", "precision"), [("desktop-gpu", "int4"), ("android", "int4"), ("cpu", "fp16")])
def test_other_targets_and_precisions_refuse_it(target: str, precision: str) -> None:
    with pytest.raises(UsageError, match="--cache-precision"):
        ExportRequest("minicpm-v", target, precision=precision, options={"cache_precision": "int8"})


def test_an_older_onnx_runtime_and_other_providers_are_refused() -> None:
    with pytest.raises(MachineError, match=r"1\.31\.0 is too old for a cache in bytes"):
        ort_providers.refuse_bytes("1.31.0", [ort_providers.CPU])
    with pytest.raises(MachineError, match="CUDAExecutionProvider"):
        ort_providers.refuse_bytes("1.32.0", ["CUDAExecutionProvider", ort_providers.CPU])
    ort_providers.refuse_bytes("1.33.1", [ort_providers.CPU])
