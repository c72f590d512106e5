"""The reference against the published code's arrays, whole and streamed, and what it records of its blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from export.modules.connectors.resampler import Resampler
from export.modules.connectors.resampler_weights import resampler_rules
from export.modules.connectors.specs import ResamplerSpec
from export.modules.kernels import Kernels
from export.source.checkpoint import open_checkpoint as open_source
from export.source.weight_map import WeightMap
from parity_tests.conftest import GOLDENS
from parity_tests.golden.case import fitted, question, read_case
from parity_tests.judging.metrics import max_abs
from parity_tests.judging.probes import Recording, record
from parity_tests.reference.arithmetic import StoredWeights
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend, blocks, load_parameters
from parity_tests.reference.streamed import StreamedTorchBackend
from runtime_py.generation.session import Limits

CASES = ("minicpm-v", "minicpm-v-2")
TOLERANCES = {"connector": 2e-5, "inputs_embeds": 2e-5, "prefill_logits": 1e-4, "step_logits": 1e-4, "greedy_ids": 0}


def answered(backend: TorchBackend, checkpoint: Checkpoint, chunk: int = 512) -> Recording:
    case = read_case(checkpoint.folder)
    processor = checkpoint.processor()
    return record(backend, processor, Limits(512, chunk), question(case, "", processor), 12, case.outputs["greedy_ids"])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_reference_says_what_the_published_code_says(name: str, streamed: bool):
    checkpoint = open_checkpoint(GOLDENS / name)
    spec, weights = checkpoint.spec, checkpoint.weights
    backend = StreamedTorchBackend(spec, weights, chunk_bytes=4096) if streamed else TorchBackend(spec, weights)
    actual = answered(backend, checkpoint, chunk=7)
    for array, tolerance in TOLERANCES.items():
        expected = read_case(checkpoint.folder).outputs[array]
        given = fitted(actual.pieces.get(array) or [actual.arrays[array]], expected)
        assert max_abs(expected, given) <= tolerance, array


def test_no_convolution_of_the_reference_is_rounded_to_tf32():
    """PyTorch's default on a GPU: the patch embedding would keep 10 bits of each factor."""
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    backend = TorchBackend(checkpoint.spec, checkpoint.weights)
    allowed: list[bool] = []
    for stage in ("vision_encoder", "decoder"):
        backend.stage(stage).register_forward_hook(lambda *_: allowed.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    answered(backend, checkpoint)
    assert len(allowed) > 1 and not any(allowed)
    assert torch.backends.cudnn.allow_tf32 is before is True


def test_the_streamed_reference_never_asks_for_a_whole_large_weight(monkeypatch: pytest.MonkeyPatch):
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    largest = 0
    rows = WeightMap.rows

    def watched(self: WeightMap, target: str, start: int, stop: int | None) -> torch.Tensor:
        nonlocal largest
        value = rows(self, target, start, stop)
        if target.startswith("decoder.layers"):
            largest = max(largest, value.numel() * 4)
        return value

    monkeypatch.setattr(WeightMap, "rows", watched)
    answered(StreamedTorchBackend(checkpoint.spec, checkpoint.weights, chunk_bytes=2048), checkpoint)
    assert 0 < largest <= 2048


def test_the_streamed_embedding_reads_ids_that_follow_one_another_together(monkeypatch: pytest.MonkeyPatch):
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    whole, streamed = (kind(checkpoint.spec, checkpoint.weights) for kind in (TorchBackend, StreamedTorchBackend))
    rows, read = WeightMap.rows, list[tuple[int, int | None]]()

    def watched(self: WeightMap, target: str, start: int, stop: int | None) -> torch.Tensor:
        read.append((start, stop))
        return rows(self, target, start, stop)

    ids = {"input_ids": np.array([[7, 3, 4, 5, 9, 4, 7, 8]])}
    expected = whole.run("embed_tokens", ids)["inputs_embeds"]
    monkeypatch.setattr(WeightMap, "rows", watched)
    np.testing.assert_array_equal(streamed.run("embed_tokens", ids)["inputs_embeds"], expected)
    assert read == [(3, 6), (7, 10)]


def test_blocks_are_recorded_in_running_order():
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    backend = TorchBackend(checkpoint.spec, checkpoint.weights)
    with backend.watch() as seen:
        answered(backend, checkpoint)
    assert list(seen.blocks["vision_encoder"]) == ["patch", "blocks.input", "blocks.0", "blocks.1", "norm"]
    assert list(seen.blocks["connector"]) == ["kv_proj", "ln_kv", "key", "value", "out", "ln_post", "proj"]
    assert list(seen.blocks["decoder"]) == ["layers.input", "layers.0", "layers.1", "norm", "head"]
    assert set(seen.calls) == {"vision_encoder", "connector", "embed_tokens", "decoder"}
    assert list(blocks(backend.stage("decoder"))) == ["layers.0", "layers.1", "norm", "head"]
    case = read_case(checkpoint.folder)
    assert np.array_equal(seen.blocks["vision_encoder"]["norm"].shape, case.outputs["vision"].shape)
    assert max_abs(case.outputs["vision"], seen.blocks["vision_encoder"]["norm"]) <= 2e-5


def test_a_full_cache_is_refused():
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    backend = TorchBackend(checkpoint.spec, checkpoint.weights)
    state = backend.start(3)
    inputs = {"inputs_embeds": np.zeros((1, 4, 128), np.float32), "position_ids": np.arange(4)[None]}
    with pytest.raises(ValueError, match="do not fit"):
        backend.forward(state, inputs, np.array([-1]))


def test_float16_storage_is_seen_by_the_reference():
    checkpoint = open_checkpoint(GOLDENS / "minicpm-v")
    layer = "connector.kv_proj"
    weights = StoredWeights(checkpoint.weights, frozenset({layer}))
    plain = checkpoint.weights.tensor(f"{layer}.weight")
    assert torch.equal(weights.tensor(f"{layer}.weight"), plain.half().float())
    assert not torch.equal(weights.tensor(f"{layer}.weight"), plain)
    assert torch.equal(weights.rows("connector.query", 0, 2), checkpoint.weights.rows("connector.query", 0, 2))


def test_the_connector_alone_with_two_heads():
    folder = GOLDENS / "resampler-2head"
    sizes = json.loads((folder / "config.json").read_text())
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        vision, expected, positions = inputs["vision"], outputs["connector"], outputs["resampler_key_pos"]
    width, queries = expected.shape[2], expected.shape[1]
    assert sizes["hidden_size"] == width
    spec = ResamplerSpec(vision.shape[2], width, queries, width // 128, 1e-6, vision.shape[1])
    weights = WeightMap(resampler_rules(spec, "resampler."), open_source(folder))
    weights.check()
    with torch.device("meta"):
        module = Resampler(spec, Kernels())
    load_parameters(module, "connector", weights, torch.float32, torch.device("cpu"))
    actual = module(torch.from_numpy(vision)).detach().numpy()
    assert spec.heads == 2
    assert max_abs(expected, actual) <= 2e-5
    assert max_abs(positions, weights.tensor("connector.key_positions").numpy()) <= 2e-5
