"""A package with a decoder for calls of many rows: it says the numbers of the first one's codes, and rows stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.conftest import EXACT, GOLDENS, TARGET, Package, decoded, export, prefill
from export.backends.onnx.many_rows import requantised, require_turned, second_assignments
from export.backends.onnx.record import ROTATED_GRID, TOKEN_GRID
from export.checkpoint.opened import open_folder
from export.modules.kernels import Kernels
from export.quantisation.codes import DequantisedWeights
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Storage
from export.request import ExportRequest
from runtime_py.backends.base import Arrays
from runtime_py.backends.onnx_files import external_files
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import MANY_ROWS
from runtime_py.contracts import DECODER
from runtime_py.errors import PackageError, UsageError

LEAST = 4
"""Sequences of a step that goes through the second decoder, as packages say it."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v", "int4", tmp_path_factory.mktemp("twice"), **EXACT, prefill_precision="int8")


@pytest.fixture
def backend(package: Package) -> OrtBackend:
    return OrtBackend(package.folder, package.manifest, threads=1)


def test_both_decoders_have_one_border_and_share_what_is_equal(package: Package) -> None:
    block = package.manifest["backends"]["onnx"]
    graphs = [package.folder / block["stages"][DECODER]["file"], package.folder / block[MANY_ROWS]["file"]]
    models = [onnx.load(str(graph), load_external_data=False) for graph in graphs]
    borders = [[(value.name, value.type) for value in (*m.graph.input, *m.graph.output)] for m in models]
    assert borders[0] == borders[1]
    onnx.checker.check_model(str(graphs[1]))
    own = f"{graphs[1].name}_data"
    assert set(external_files(graphs[1])) == {own, f"{graphs[0].name}_data"}
    placed = {t.name: {e.key: e.value for e in t.external_data} for t in models[1].graph.initializer if t.external_data}
    assert {name for name, at in placed.items() if at["location"] == own} == {
        f"{name.partition('.')[2]}{part}"
        for name in second_assignments(package.build.assignments)
        for part in (".weight_codes", ".weight_scales")
    }
    size = graphs[1].with_name(own).stat().st_size
    assert abs(package.prediction.file_bytes[MANY_ROWS] - graphs[1].stat().st_size - size) < 0.02 * size + 20_000


def test_a_prompt_is_read_as_the_reference_with_its_numbers_reads_it(package: Package, backend: OrtBackend) -> None:
    second = requantised(package.build.weights, package.build.codes, package.build.assignments)
    weights = DequantisedWeights(second.weights, second.codes, second.layers, GRIDS)
    embeds = package.golden["inputs_embeds"]
    wanted, positions = decoded(package.spec, weights, Kernels(), embeds), np.arange(embeds.shape[1])
    fed = {"inputs_embeds": embeds, "position_ids": positions[None]}
    read = backend.prefill(backend.start(64), fed, positions)
    # what rounding every layer's input costs; a layer that is turned in another way than its matrix says something else
    assert 1e-3 < np.linalg.norm(read - wanted) / np.linalg.norm(wanted) < 0.03
    first = prefill(backend, embeds, 64)[1]
    # another decoder, of the same model: eight bits for a row of what were four for a block
    scale = np.abs(wanted).max()
    assert 1e-4 * scale < np.abs(read - first).max() < 0.1 * scale
    backend.close()


def test_a_step_is_the_same_whoever_shares_it_and_few_take_the_first_decoder(package: Package, backend: OrtBackend) -> None:
    drawn, hidden = np.random.default_rng(3), package.spec.decoder.hidden
    prompts = [drawn.standard_normal((1, length, hidden)).astype(np.float32) for length in (5, 9, 3, 7, 4, 6)]
    tokens = [drawn.standard_normal((1, 1, hidden)).astype(np.float32) for _ in prompts]

    def steps(who: list[int]) -> np.ndarray:
        """Logits of a step of some sequences behind their prompts."""
        states = backend.start_batch(len(who), 64)
        for state, each in zip(states, who, strict=True):
            prompt: Arrays = {"inputs_embeds": prompts[each], "position_ids": np.arange(prompts[each].shape[1])[None]}
            backend.prefill(state, prompt, np.array([-1]))
        fed: list[Arrays] = [{"inputs_embeds": tokens[n], "position_ids": np.array([[prompts[n].shape[1]]])} for n in who]
        return np.concatenate(backend.forward_batch(states, fed))

    assert backend.why_not_batched(2) == ""
    four, six = steps([0, 1, 2, 3]), steps([5, 0, 4, 3, 2, 1])
    np.testing.assert_array_equal(four, six[[1, 5, 4, 3]])
    three = steps([0, 1, 2])
    np.testing.assert_array_equal(three, steps([0, 1, 2]))
    assert 0 < np.abs(three - four[:3]).max() < 0.1 * np.abs(four).max()
    assert package.manifest["backends"]["onnx"][MANY_ROWS]["least_sequences"] == LEAST
    backend.close()


def test_calls_of_both_decoders_are_counted_and_let_go(package: Package, backend: OrtBackend) -> None:
    state = backend.start(64)
    fed = {"inputs_embeds": package.golden["inputs_embeds"][:, :3], "position_ids": np.arange(3)[None]}
    read = backend.prefill(state, fed, np.array([-1]))
    after = backend.decoder_seconds
    backend.rewind(state, 0)
    assert not np.array_equal(backend.forward(state, fed, np.array([-1])), read)
    counted = backend.decoder_seconds
    assert 0 < after < counted
    backend.release()
    assert backend.decoder_seconds == counted
    backend.rewind(state, 0)
    np.testing.assert_array_equal(backend.prefill(state, fed, np.array([-1])), read)
    backend.close()


def test_adapters_and_what_is_no_integer_stay_the_first_decoder_s() -> None:
    spec = open_folder(GOLDENS / "awaker2.5-vl").spec
    assignments = OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, {"head_precision": "fp16"}))
    second = second_assignments(assignments)
    assert second and {row.storage for row in second.values()} == {Storage.INT8}
    kept = [row for name, row in assignments.items() if name.startswith("decoder.") and name not in second]
    assert {row.layer.role for row in kept} == {"head", "adapter"}


def test_a_second_decoder_of_before_is_refused_by_name_where_it_is_checked() -> None:
    with pytest.raises(PackageError, match=TOKEN_GRID) as raised:
        require_turned(Path("package"), {"decoder.head": {"grid": TOKEN_GRID}, "decoder.norm": {"grid": ""}})
    assert "export the package again" in raised.value.next_step
    require_turned(Path("package"), {"decoder.head": {"grid": ROTATED_GRID}})


@pytest.mark.parametrize(
    ("target", "precision"), [("desktop-gpu", "int4"), ("server-gpu", "int4"), ("android", "int4"), ("cpu", "fp16")]
)
def test_other_targets_and_precisions_refuse_it(target: str, precision: str) -> None:
    with pytest.raises(UsageError, match="--prefill-precision") as raised:
        ExportRequest("minicpm-v", target, precision=precision, options={"prefill_precision": "int8"})
    assert "cpu or server-cpu with --precision int4" in raised.value.expected
