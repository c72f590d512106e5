"""A package with a decoder for calls of many rows: it says the numbers of the first one's codes, and rows stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.conftest import EXACT, GOLDENS, TARGET, Package, export, prefill
from export.backends.onnx.int8_linear import Int8RowPairLinear
from export.backends.onnx.many_rows import requantised, second_assignments
from export.backends.onnx.record import TOKEN_GRID
from export.checkpoint.opened import open_folder
from export.modules.build import build_stage
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
from runtime_py.errors import UsageError

LEAST = 4
"""Sequences of a step that goes through the second decoder, as packages say it."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export("minicpm-v", "int4", tmp_path_factory.mktemp("twice"), **EXACT, prefill_precision="int8")


@pytest.fixture
def backend(package: Package) -> OrtBackend:
    return OrtBackend(package.folder, package.manifest, threads=1)


def test_rows_are_rounded_apart_and_finely(tmp_path: Path) -> None:
    """A row a thousand times as large takes nobody's bits, one of zeros stays what it is, and company changes no bit."""
    layer, grid, drawn = Int8RowPairLinear(64, 48, True), GRIDS[TOKEN_GRID], torch.Generator().manual_seed(2)
    codes = grid.quantise(torch.randn(48, 64, generator=drawn))
    layer.weight_codes.data = (codes.codes.to(torch.int16) - 128).to(torch.int8)
    assert layer.bias is not None
    layer.weight_scales.data, layer.bias.data = codes.scales[:, 0], torch.linspace(-1, 1, 48)
    rows = torch.randn(2, 5, 64, generator=drawn)
    rows[0, 1] *= 1000
    rows[1, 3] = 0
    path, auto = tmp_path / "layer.onnx", torch.export.Dim.AUTO
    axes = ({0: auto, 1: auto},)
    torch.onnx.export(
        layer.eval(), (rows,), str(path), dynamic_shapes=axes, dynamo=True, opset_version=23, optimize=False, verbose=False
    )
    session = onnxruntime.InferenceSession(str(path))
    name = session.get_inputs()[0].name
    (output,) = session.run(None, {name: rows.numpy()})
    expected = (rows @ grid.dequantise(codes).T + layer.bias).detach().numpy()
    errors = np.linalg.norm(output - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert 1e-6 < errors.max() < 2e-4
    np.testing.assert_array_equal(output[1, 3], layer.bias.detach().numpy())
    for count in (1, 2, 4):
        np.testing.assert_array_equal(session.run(None, {name: rows[:1, :count].numpy()})[0], output[:1, :count])


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
    module = build_stage(package.spec, DECODER, Kernels()).eval()
    module.load_state_dict({n: weights.tensor(f"{DECODER}.{n}").float() for n, _ in module.named_parameters()})
    embeds, spec = torch.from_numpy(package.golden["inputs_embeds"]), package.spec.decoder
    tokens = embeds.shape[1]
    past, positions = torch.zeros(1, spec.kv_heads, 0, spec.head_dim), torch.arange(tokens)
    with torch.no_grad():
        given = (embeds, torch.ones(1, tokens, dtype=torch.long), positions[None], positions)
        wanted = module(*given, [(past, past)] * spec.layers)[0].numpy()
    fed = {"inputs_embeds": embeds.numpy(), "position_ids": positions[None].numpy()}
    read = backend.read(backend.start(64), fed, positions.numpy())
    scale = np.abs(wanted).max()
    assert np.abs(read - wanted).max() < 1e-3 * scale
    first = prefill(backend, embeds.numpy(), 64)[1]
    # another decoder, of the same model: eight bits for a row of what were four for a block
    assert 1e-4 * scale < np.abs(read - first).max() < 0.1 * scale
    backend.close()


def test_a_step_is_the_same_whoever_shares_it_and_few_take_the_first_decoder(package: Package, backend: OrtBackend) -> None:
    drawn, hidden = np.random.default_rng(3), package.spec.decoder.hidden
    prompts = [drawn.standard_normal((1, length, hidden)).astype(np.float32) for length in (5, 9, 3, 7, 4, 6)]
    tokens = [drawn.standard_normal((1, 1, hidden)).astype(np.float32) for _ in prompts]

    def steps(who: list[int]) -> np.ndarray:
        """Logits of a step of some sequences behind their prompts."""
        states = backend.start_together(len(who), 64)
        for state, each in zip(states, who, strict=True):
            prompt: Arrays = {"inputs_embeds": prompts[each], "position_ids": np.arange(prompts[each].shape[1])[None]}
            backend.read(state, prompt, np.array([-1]))
        fed: list[Arrays] = [{"inputs_embeds": tokens[n], "position_ids": np.array([[prompts[n].shape[1]]])} for n in who]
        return np.concatenate(backend.forward_together(states, fed))

    assert backend.alone() == ""
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
    read = backend.read(state, fed, np.array([-1]))
    after = backend.decoder_seconds
    backend.rewind(state, 0)
    assert not np.array_equal(backend.forward(state, fed, np.array([-1])), read)
    counted = backend.decoder_seconds
    assert 0 < after < counted
    backend.release()
    assert backend.decoder_seconds == counted
    backend.rewind(state, 0)
    np.testing.assert_array_equal(backend.read(state, fed, np.array([-1])), read)
    backend.close()


def test_adapters_and_what_is_no_integer_stay_the_first_decoder_s() -> None:
    spec = open_folder(GOLDENS / "awaker2.5-vl").spec
    assignments = OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, {"head_precision": "fp16"}))
    second = second_assignments(assignments)
    assert second and {row.storage for row in second.values()} == {Storage.INT8}
    kept = [row for name, row in assignments.items() if name.startswith("decoder.") and name not in second]
    assert {row.layer.role for row in kept} == {"head", "adapter"}


@pytest.mark.parametrize(
    ("target", "precision"), [("desktop-gpu", "int4"), ("server-gpu", "int4"), ("android", "int4"), ("cpu", "fp16")]
)
def test_other_targets_and_precisions_refuse_it(target: str, precision: str) -> None:
    with pytest.raises(UsageError, match="--prefill-precision") as raised:
        ExportRequest("minicpm-v", target, precision=precision, options={"prefill_precision": "int8"})
    assert "cpu or server-cpu with --precision int4" in raised.value.expected
