"""Graphs with four-bit weights against the reference that holds the same integers, and how their layers are chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from export.backends.base import BuildOptions
from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.choices import OnnxChoices, assign
from export.backends.onnx.conftest import EXACT, GOLDENS, TARGET, Package, export, prefill
from export.backends.onnx.int8_linear import Int8TokenLinear
from export.backends.onnx.record import TOKEN_GRID
from export.backends.onnx.stage_graphs import chosen_for, stage_model
from export.checkpoint.opened import open_folder
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, LayerShape, Storage
from runtime_py.backends.ort import OrtBackend
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.errors import UsageError
from runtime_py.package.files import rows_of


def test_int4_package_is_the_dequantised_reference(packed: Package) -> None:
    backend = OrtBackend(packed.folder, packed.manifest, threads=1)
    golden = packed.golden
    inputs = {
        VISION: {"pixel_values": golden["pixel_values"]},
        CONNECTOR: {"vision_features": golden["vision"]},
        EMBED: {"input_ids": golden["input_ids"]},
    }
    for stage, feeds in inputs.items():
        (output,) = backend.run(stage, feeds).values()
        with torch.no_grad():
            wanted = packed.reference(stage)(*(torch.from_numpy(value) for value in feeds.values())).numpy()
        # the connector is stored in float16, which the reference is not: 2e-3 there
        np.testing.assert_allclose(output, wanted, atol=1e-2 if stage == CONNECTOR else 2e-5, err_msg=stage)
    spec, embeds = packed.spec.decoder, golden["inputs_embeds"]
    tokens = embeds.shape[1]
    past = torch.zeros(1, spec.kv_heads, 0, spec.head_dim)
    positions = torch.arange(tokens)
    with torch.no_grad():
        wanted, _ = packed.reference(DECODER)(
            torch.from_numpy(embeds),
            torch.ones(1, tokens, dtype=torch.long),
            positions[None],
            positions,
            [(past, past)] * spec.layers,
        )
    for chunk in (64, 7):
        _, output = prefill(backend, embeds, chunk)
        np.testing.assert_allclose(output, wanted.numpy(), atol=1e-4)


def test_int4_differs_from_the_golden(packed: Package) -> None:
    """Guards the test above: a package that kept full precision would pass it only if nothing were quantised."""
    backend = OrtBackend(packed.folder, packed.manifest, threads=1)
    _, logits = prefill(backend, packed.golden["inputs_embeds"], 64)
    assert np.abs(logits - packed.golden["prefill_logits"]).max() > 0.01


def test_default_int4_options_stay_close(default_decoder: Path, packed: Package) -> None:
    """int8 inputs of MatMulNBits and a float16 cache, against the package that has neither."""
    stages = {DECODER: {"file": default_decoder.name}}
    files = rows_of(default_decoder.parent)
    manifest = {**packed.manifest, "backends": {"onnx": {"stages": stages}}, "files": files}
    exact = OrtBackend(packed.folder, packed.manifest, threads=1)
    default = OrtBackend(default_decoder.parent, manifest, threads=1)
    _, wanted = prefill(exact, packed.golden["inputs_embeds"], 64)
    _, logits = prefill(default, packed.golden["inputs_embeds"], 64)
    assert 0 < np.abs(logits - wanted).max() < 0.25
    cosine = (logits * wanted).sum() / np.linalg.norm(logits) / np.linalg.norm(wanted)
    assert cosine > 0.9995


def test_the_cache_goes_into_the_attention_as_it_is(packed: Package, default_decoder: Path) -> None:
    """A cast between cache and operator would copy the whole cache in every step."""
    exact = packed.folder / packed.manifest["backends"]["onnx"]["stages"][DECODER]["file"]
    for path, kind in ((exact, TensorProto.FLOAT), (default_decoder, TensorProto.FLOAT16)):
        graph = onnx.load(str(path), load_external_data=False).graph
        caches = {value.name for value in graph.input if value.name.startswith("past_key_values.")}
        assert {value.type.tensor_type.elem_type for value in graph.input if value.name in caches} == {kind}
        assert {n.op_type for n in graph.node if caches & set(n.input)} == {"GroupQueryAttention"}
        results = {name for n in graph.node if n.op_type == "GroupQueryAttention" for name in n.output[1:]}
        assert results == {value.name for value in graph.output if value.name.startswith("present.")}


def test_a_matrix_that_does_not_fill_its_blocks_says_so() -> None:
    spec = open_folder(GOLDENS / "minicpm-v").spec
    backend = OnnxBackend()
    assignments = backend.assignments(
        spec, BuildOptions(TARGET, "int4", TARGET.limits, {"vision_precision": "int8_weights"})
    )
    fc2 = assignments["vision_encoder.blocks.0.mlp.fc2"]
    assert (fc2.storage, fc2.grid) == (Storage.INT8, "ort_int8_b32")
    assert "89 columns are no multiple, the last block holds 25" in fc2.reason
    assert assignments["decoder.head"].storage is Storage.INT4
    assert {a.storage for name, a in assignments.items() if name.startswith("connector.")} == {Storage.FP16}
    with pytest.raises(UsageError, match="vision_precision=int3"):
        backend.assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, {"vision_precision": "int3"}))
    with pytest.raises(UsageError, match="precision int2"):
        backend.assignments(spec, BuildOptions(TARGET, "int2", TARGET.limits, {}))


OTHER = {**EXACT, "vision_precision": "int8", "embed_precision": "int4", "block_size": 64, "symmetric": False}
"""What the tests above do not choose: rounded vision activations, a 4-bit table, blocks with zero points."""


def test_other_choices_run_on_their_grids(tmp_path: Path) -> None:
    package = export("minicpm-v", "int4", tmp_path, (VISION, EMBED, DECODER), **OTHER)
    files = {VISION: "vision_tower_int8", EMBED: "embed_tokens_q4", DECODER: "decoder_model_merged_q4"}
    stages = {stage: {"file": f"onnx/{stem}.onnx"} for stage, stem in files.items()}
    backend = OrtBackend(tmp_path, {**package.manifest, "backends": {"onnx": {"stages": stages}}}, threads=1)
    golden, spec = package.golden, package.spec.decoder
    tokens = golden["inputs_embeds"].shape[1]
    ids, pixels = torch.from_numpy(golden["input_ids"]), torch.from_numpy(golden["pixel_values"])
    past = torch.zeros(1, spec.kv_heads, 0, spec.head_dim)
    positions, ones = torch.arange(tokens), torch.ones(1, tokens, dtype=torch.long)
    embeds = torch.from_numpy(golden["inputs_embeds"])
    with torch.no_grad():
        table = package.reference(EMBED)(ids).numpy()
        features = package.reference(VISION)(pixels).numpy()
        logits = package.reference(DECODER)(embeds, ones, positions[None], positions, [(past, past)] * spec.layers)[0]
    np.testing.assert_allclose(backend.run(EMBED, {"input_ids": ids.numpy()})["inputs_embeds"], table, atol=1e-6)
    np.testing.assert_allclose(prefill(backend, golden["inputs_embeds"], 64)[1], logits.numpy(), atol=1e-4)
    output = backend.run(VISION, {"pixel_values": pixels.numpy()})["vision_features"]
    cosine = (output * features).sum(-1) / np.linalg.norm(output, axis=-1) / np.linalg.norm(features, axis=-1)
    # equal bits would mean that nothing was rounded
    assert 0.9995 < cosine.min() < 0.9999999


@pytest.mark.parametrize(("finely", "least", "most"), [(False, 1e-4, 0.02), (True, 1e-6, 2e-4)])
def test_a_token_is_rounded_apart_from_its_neighbours(tmp_path: Path, finely: bool, least: float, most: float) -> None:
    """A token a thousand times as large as the others must not take their bits; one of zeros stays what it is."""
    layer, grid = Int8TokenLinear(64, 48, True, 64, finely), GRIDS[TOKEN_GRID]
    weight, bias = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 48)
    codes = grid.quantise(weight)
    layer.weight_codes.data = (codes.codes.to(torch.int16) - 128).to(torch.int8)
    assert layer.bias is not None
    layer.weight_scales.data, layer.bias.data = codes.scales[:, 0], bias
    tokens = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2))
    tokens[0, 1] *= 1000
    tokens[1, 3] = 0
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer.eval(), (tokens,), str(path), dynamo=True, opset_version=23, optimize=False, verbose=False)
    session = onnxruntime.InferenceSession(str(path))
    (output,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    expected = (tokens @ grid.dequantise(codes).T + bias).numpy()
    errors = np.linalg.norm(output - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert least < errors.max() < most
    np.testing.assert_array_equal(output[1, 3], bias.numpy())


def test_a_tower_of_bytes_keeps_bias_and_gelu_apart(tmp_path: Path) -> None:
    """ONNX Runtime's joined BiasGelu takes twice the time of the two."""
    export("minicpm-v", "int4", tmp_path, (VISION,))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "onnx" / "vision_tower_int8.onnx"), options)
    operators = {node.op_type for node in onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node}
    assert ("Gelu" in operators, "BiasGelu" in operators, "MatMulNBits" in operators) == (True, False, False)


def test_the_4304_wide_layer_is_decided_from_its_shape() -> None:
    fc2 = LayerShape("vision_encoder.blocks.1.mlp.fc2", "vision", 1152, 4304)
    blocks = assign(fc2, OnnxChoices("int4", "int8_weights", "int8"))
    assert (blocks.grid, "the last block holds 16" in blocks.reason) == ("ort_int8_b32", True)
    rows = assign(fc2, OnnxChoices("int4", "int8", "int8"))
    assert (rows.grid, "4304 columns need be no multiple" in rows.reason) == (TOKEN_GRID, True)
    first = assign(replace(fc2, name="vision_encoder.blocks.0.mlp.fc2"), OnnxChoices("int4", "int8", "int8"))
    assert (first.grid, "first block in 14 bits" in first.reason) == (TOKEN_GRID, True)
    pixels = assign(LayerShape("vision_encoder.patch", "vision", 1280, 1176), OnnxChoices("int4", "int8", "int8"))
    assert (pixels.grid, "in 14 bits" in pixels.reason, "in 14 bits" in rows.reason) == (TOKEN_GRID, True, False)
    narrow = assign(LayerShape("embed_tokens.table", "embedding", 256, 48), OnnxChoices("int4", "int8", "int8"))
    assert (narrow.storage, narrow.reason) == (Storage.FP16, "48 columns are no multiple of 32")


def test_the_mixed_preset_widens_what_sums_up_and_the_head() -> None:
    spec = open_folder(GOLDENS / "minicpm-v").spec

    def planned(**extra: str | bool) -> dict[str, Assignment]:
        return OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, extra))

    assert planned(preset="plain") == planned()
    plain, mixed = planned(symmetric=False), planned(preset="mixed")
    changed = [name for name in plain if plain[name] != mixed[name]]
    assert {name.rpartition(".")[2] for name in changed} == {"down", "head"}
    assert {mixed[name].storage for name in changed} == {Storage.INT8}
    assert planned(preset="mixed", head_precision="int4")["decoder.head"].storage is Storage.INT4


def test_the_compact_preset_takes_the_longest_blocks_that_divide() -> None:
    spec = open_folder(GOLDENS / "minicpm-v").spec

    def planned(**extra: str | int) -> dict[str, Assignment]:
        return OnnxBackend().assignments(spec, BuildOptions(TARGET, "int4", TARGET.limits, extra))

    compact = planned(preset="compact")
    assert compact == planned(block_size="auto") != planned()
    assert planned(preset="compact", block_size=64) == planned(block_size=64)
    four = [row for row in compact.values() if row.storage is Storage.INT4]
    assert four and not any(row.layer.columns % GRIDS[row.grid].group for row in four)


@pytest.mark.parametrize(("model", "preset"), [("minicpm-v", "mixed"), ("awaker2.5-vl", "plain"), ("wemm", "plain")])
def test_eight_bits_that_tokens_read_round_their_input(model: str, preset: str) -> None:
    """With float32 inputs ONNX Runtime unpacks the whole matrix in every call: layers that keep eight bits, and adapters."""
    spec, asked = open_folder(GOLDENS / model).spec, {"preset": preset, "vision_precision": "int8_weights"}
    backend, options = OnnxBackend(), BuildOptions(TARGET, "int4", TARGET.limits, asked)
    chosen, assignments = chosen_for(spec, options), backend.assignments(spec, options)
    levels: dict[tuple[str, int], set[int]] = {}
    for stage in (DECODER, VISION):
        for node in stage_model(spec, stage, chosen, assignments).graph.node:
            if node.op_type == "MatMulNBits":
                values = {attribute.name: attribute.i for attribute in node.attribute}
                levels.setdefault((stage, values["bits"]), set()).add(values["accuracy_level"])
    assert levels == {(DECODER, 4): {4}, (DECODER, 8): {4}, (VISION, 8): {0}}
