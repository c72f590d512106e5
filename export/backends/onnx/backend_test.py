"""Packages of the golden checkpoints, written and run: every stage against the published code and our reference."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.backends.onnx.conftest import EXACT, Package, export, greedy, prefill
from export.backends.onnx.prediction import FURTHER
from export.modules.vision.specs import VisionSpec
from runtime_py.backends.ort import OrtBackend
from runtime_py.contracts import CONNECTOR, DECODER, VISION
from runtime_py.errors import UsageError


def test_vision_and_connector_match_the_published_code(first: Package, runtime: OrtBackend) -> None:
    vision = runtime.run(VISION, {"pixel_values": first.golden["pixel_values"]})["vision_features"]
    np.testing.assert_allclose(vision, first.golden["vision"], atol=2e-5)
    rows = runtime.run(CONNECTOR, {"vision_features": vision})["image_features"]
    np.testing.assert_allclose(rows, first.golden["connector"], atol=2e-5)


@pytest.mark.parametrize("chunk", [64, 7, 1])
@pytest.mark.parametrize("case", ["first", "second"])
def test_decoder_matches_the_published_code_whatever_the_chunk(
    case: str, chunk: int, request: pytest.FixtureRequest
) -> None:
    package = request.getfixturevalue(case)
    backend = OrtBackend(package.folder, package.manifest, threads=1)
    state, logits = prefill(backend, package.golden["inputs_embeds"], chunk)
    np.testing.assert_allclose(logits, package.golden["prefill_logits"], atol=1e-4)
    ids, steps = greedy(backend, state, logits, 12)
    assert ids == package.golden["greedy_ids"][0].tolist()
    np.testing.assert_allclose(steps, package.golden["step_logits"], atol=1e-4)


def test_grids_of_any_shape_match_the_reference(second: Package) -> None:
    backend = OrtBackend(second.folder, second.manifest, threads=1)
    modules = {stage: second.reference(stage) for stage in (VISION, CONNECTOR)}
    assert isinstance(second.spec.vision, VisionSpec)
    native, width = second.spec.vision.native_grid, second.spec.connector.width
    generator = np.random.default_rng(0)
    for rows, columns, images in ((3, 5, 1), (6, 2, 2)):
        side = second.spec.vision.patch_size
        vision = {
            "pixel_values": generator.standard_normal((images, 3, rows * side, columns * side)),
            "row_weights": generator.standard_normal((rows, native)),
            "column_weights": generator.standard_normal((columns, native)),
        }
        vision = {name: value.astype(np.float32) for name, value in vision.items()}
        positions = generator.standard_normal((rows * columns, width)).astype(np.float32)
        features = backend.run(VISION, vision)["vision_features"]
        with torch.no_grad():
            wanted = modules[VISION](**{name: torch.from_numpy(value) for name, value in vision.items()})
            after = modules[CONNECTOR](wanted, torch.from_numpy(positions))
        np.testing.assert_allclose(features, wanted.numpy(), atol=2e-5)
        rows_out = backend.run(CONNECTOR, {"vision_features": features, "key_positions": positions})["image_features"]
        np.testing.assert_allclose(rows_out, after.numpy(), atol=5e-5)


def test_positions_are_honoured_one_by_one(first: Package, runtime: OrtBackend) -> None:
    """Shared, skipped and falling position ids, in the first prompt and after it."""
    module, spec = first.reference(DECODER), first.spec.decoder
    embeds = first.golden["inputs_embeds"][:, :9]
    positions = np.array([[0, 1, 5, 5, 5, 40, 3, 9, 10]])
    empty = [(torch.zeros(1, spec.kv_heads, 0, spec.head_dim),) * 2] * spec.layers
    ones = torch.ones(1, 9, dtype=torch.long)
    with torch.no_grad():
        wanted, _ = module(torch.from_numpy(embeds), ones, torch.from_numpy(positions), torch.arange(9), empty)
    state, logits = runtime.start(16), []
    for start, stop in ((0, 6), (6, 9)):
        inputs = {"inputs_embeds": embeds[:, start:stop], "position_ids": positions[:, start:stop]}
        logits.append(runtime.forward(state, inputs, np.arange(stop - start)))
    np.testing.assert_allclose(np.concatenate(logits, axis=1), wanted.numpy(), atol=1e-4)


def test_rewound_positions_are_forgotten(first: Package, runtime: OrtBackend) -> None:
    embeds = first.golden["inputs_embeds"]
    state, logits = prefill(runtime, embeds, 64)
    runtime.rewind(state, 10)
    inputs = {"inputs_embeds": embeds[:, 10:], "position_ids": np.arange(10, embeds.shape[1])[None]}
    again = runtime.forward(state, inputs, np.array([-1]))
    np.testing.assert_allclose(again[:, -1], logits[:, -1], atol=1e-5)
    for length in (-1, state.length + 1):
        with pytest.raises(UsageError, match=f"rewind to {length}"):
            runtime.rewind(state, length)
    with pytest.raises(UsageError, match="cache of 64"):
        runtime.forward(state, {"inputs_embeds": np.repeat(embeds, 3, 1), "position_ids": np.zeros((1, 72))}, np.array([-1]))


def test_other_tools_ask_for_the_last_logits_or_for_all(first: Package, runtime: OrtBackend) -> None:
    _, logits = prefill(runtime, first.golden["inputs_embeds"], 64)
    session = onnxruntime.InferenceSession(str(first.folder / "onnx" / "decoder_model_merged.onnx"))
    spec, tokens = first.spec.decoder, logits.shape[1]
    feeds = {"inputs_embeds": first.golden["inputs_embeds"], "position_ids": np.arange(tokens)[None]}
    feeds["attention_mask"] = np.ones((1, tokens), np.int64)
    for layer in range(spec.layers):
        for half in ("key", "value"):
            feeds[f"past_key_values.{layer}.{half}"] = np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    for kept, rows in ((1, logits[:, -1:]), (3, logits[:, -3:]), (0, logits)):
        given = session.run(None, {**feeds, "num_logits_to_keep": np.array(kept)})
        np.testing.assert_allclose(given[0], rows, atol=1e-5)
        assert given[1].shape == (1, spec.kv_heads, tokens, spec.head_dim)
    names = {value.name for value in session.get_inputs()}
    assert not session.get_overridable_initializers() and names == {*feeds, "num_logits_to_keep"}


def test_equal_inputs_give_equal_bytes(packed: Package, tmp_path: Path) -> None:
    export("minicpm-v", "int4", tmp_path, (CONNECTOR, DECODER), **EXACT)
    files = sorted((tmp_path / "onnx").iterdir())
    assert len(files) == 4
    for file in files:
        other = packed.folder / "onnx" / file.name
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), file.name


@pytest.mark.parametrize("case", ["first", "second", "packed"])
def test_sizes_are_predicted(case: str, request: pytest.FixtureRequest) -> None:
    package = request.getfixturevalue(case)
    for stage, size in package.sizes().items():
        # the graph itself is predicted to a few KB, and tensors may lie in another order with other gaps: 8 KB
        assert abs(package.prediction.file_bytes[stage] - size) <= 0.01 * size + 8192, stage
    further = package.manifest["backends"]["onnx"]["further_graphs"].values()
    size = sum((package.folder / path).stat().st_size for path in further)
    # by constants of full-size int4 graphs; fp32 takes fewer (the demo's three: 59,958 bytes, predicted 78,370)
    assert abs(package.prediction.file_bytes[FURTHER] - size) <= 0.5 * size
