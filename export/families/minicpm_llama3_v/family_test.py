"""MiniCPM-Llama3-V 2.5: recognition, published counts, each stage against another implementation of the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.families.minicpm_llama3_v.family import FAMILY
from export.families.registry import recognise
from export.modules.connectors.specs import ResamplerSpec
from export.modules.vision.specs import VisionSpec
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from parity_tests.golden.case import fitted, question, read_case
from parity_tests.judging.probes import record
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import CONNECTOR, EMBED, VISION
from runtime_py.errors import UnsupportedModelError
from runtime_py.generation.session import Limits

GOLDEN = Path(__file__).parents[3] / "parity_tests" / "goldens" / "minicpm-llama3-v"
INDEX_TOTAL_SIZE = 34_148_369_344
"""``total_size`` of the published model.safetensors.index.json, which counts four bytes a parameter."""
FILE_BYTES = (
    2_443_235_064,
    2_416_006_592,
    2_499_909_808,
    2_499_909_832,
    2_416_006_640,
    2_499_909_816,
    2_299_293_224,
)
"""The seven published files, two bytes a parameter and a JSON header each."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return open_checkpoint(synthesize(SynthesisRequest(FAMILY.name, "tiny", folder, dtype="float32")).folder)


@pytest.fixture(scope="module")
def backend(tiny: Checkpoint) -> TorchBackend:
    return TorchBackend(tiny.spec, tiny.weights)


def published(checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
    """The checkpoint's own tensors under a prefix, as another implementation loads them."""
    source = checkpoint.weights.source
    return {name.removeprefix(prefix): source.read(name).float() for name in source.infos if name.startswith(prefix)}


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_text())
    return config


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    config = FAMILY.published_config("", "full") | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    return tmp_path


@pytest.mark.parametrize("version", ["2.5", None])
def test_the_published_config_is_recognised(tmp_path: Path, version: str | None) -> None:
    assert recognise(folder_with(tmp_path, version=version)) is FAMILY


def test_2_6_stays_refused_by_name(tmp_path: Path) -> None:
    tower = {"hidden_size": 1152, "image_size": 980, "model_type": "siglip"}
    folder = folder_with(tmp_path, version=2.6, hidden_size=3584, query_num=64, vision_config=tower)
    with pytest.raises(UnsupportedModelError, match=r"2\.6") as told:
        recognise(folder)
    assert told.value.exit_code == 3


def test_codes_that_are_not_read_are_refused_with_the_full_precision_checkpoint_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="gptq") as told:
        recognise(folder_with(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4}))
    assert FAMILY.hub_ids[0] in str(told.value)
    assert recognise(folder_with(tmp_path, quantization_config={"quant_method": "bitsandbytes"})) is FAMILY


def test_tensors_and_parameters_are_the_published_ones() -> None:
    spec = FAMILY.spec(FAMILY.published_config("", "full"), EmptySource())
    rules = FAMILY.weight_map(spec, EmptySource()).rules.values()
    read = {n: s for rule in rules for n, s in zip(rule.sources, rule.source_shapes, strict=True)}
    parameters = sum(math.prod(shape) for shape in read.values())
    assert (len(read), parameters) == (741, 8_537_092_336)
    assert 4 * parameters == INDEX_TOTAL_SIZE
    headers = sum(FILE_BYTES) - 2 * parameters
    assert 100 * len(read) < headers < 130 * len(read), "an entry of a safetensors header takes about 116 bytes"


def image_side(spec: ModelSpec) -> tuple[VisionSpec, ResamplerSpec]:
    assert isinstance(spec.vision, VisionSpec) and isinstance(spec.connector, ResamplerSpec)
    return spec.vision, spec.connector


def test_settings_are_read_and_defaulted_as_published() -> None:
    config = FAMILY.published_config("", "full")
    spec = FAMILY.spec(config, EmptySource())
    vision, connector = image_side(spec)
    assert (vision.layers, vision.native_grid, connector.heads, spec.image_rows) == (27, 70, 32, 960)
    assert (spec.decoder.kv_heads, spec.decoder.rope.theta, spec.decoder.max_positions) == (8, 500000.0, 8192)
    assert spec.generation["stop_ids"] == [128001, 128009]
    assert spec.facts["defaulted_config_keys"] == []
    bare = {k: v for k, v in config.items() if k not in ("slice_config", "drop_vision_last_layer", "query_num")}
    spec = FAMILY.spec(bare, EmptySource())
    vision, connector = image_side(spec)
    assert (vision.layers, connector.queries, spec.image_rows) == (26, 64, 64)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 13), (3, 17)])
def test_the_tower_equals_the_idefics2_class_on_one_row_of_patches(
    tiny: Checkpoint, backend: TorchBackend, rows: int, columns: int
) -> None:
    transformers = pytest.importorskip("transformers.models.idefics2.modeling_idefics2")
    from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig

    config = Idefics2VisionConfig(**{k: v for k, v in config_of(tiny)["vision_config"].items() if k != "model_type"})
    tower = transformers.Idefics2VisionTransformer(config).eval()
    tower.load_state_dict(published(tiny, "vpm."))
    pixels = torch.randn(1, 3, 14 * rows, 14 * columns, generator=torch.Generator().manual_seed(rows))
    patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14)
    row = patches.reshape(1, 3, rows * columns, 14, 14).transpose(2, 3).reshape(1, 3, 14, -1)
    with torch.no_grad():
        expected = tower(row).last_hidden_state.numpy()
    places = np.array([min(9, math.floor(10 * place / (rows * columns) + 1e-7)) for place in range(rows * columns)])
    actual = backend.run(VISION, {"pixel_values": pixels.numpy(), "patch_positions": places})["vision_features"]
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_the_resampler_equals_torch_attention_without_query_positions(tiny: Checkpoint, backend: TorchBackend) -> None:
    stored, rows, columns = published(tiny, "resampler."), 5, 9
    width = stored["proj"].shape[0]
    features = torch.randn(1, rows * columns, 48, generator=torch.Generator().manual_seed(3))
    attention = torch.nn.MultiheadAttention(width, width // 128, batch_first=True)
    attention.load_state_dict({k.removeprefix("attn."): v for k, v in stored.items() if k.startswith("attn.")})
    positions = torch.zeros(rows, columns, width)
    for channel in range(width // 4):
        angle = torch.arange(max(rows, columns)) * 10000.0 ** (-4 * channel / width)
        positions[:, :, channel], positions[:, :, width // 4 + channel] = angle[:columns].sin(), angle[:columns].cos()
        positions[:, :, width // 2 + channel] = angle[:rows, None].sin()
        positions[:, :, 3 * width // 4 + channel] = angle[:rows, None].cos()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (width,), stored[f"{name}.weight"], stored[f"{name}.bias"], 1e-6)

    keys = norm(features @ stored["kv_proj.weight"].T, "ln_kv")
    with torch.no_grad():
        attended = attention(norm(stored["query"], "ln_q")[None], keys + positions.reshape(1, -1, width), keys)[0]
        expected = norm(attended, "ln_post") @ stored["proj"]
    picture = np.zeros((14 * rows, 14 * columns, 3), np.uint8)
    sides = tiny.processor()._inputs(picture, 0, (0, 0)).connector  # type: ignore[attr-defined]
    actual = backend.run(CONNECTOR, {"vision_features": features.numpy(), **sides})["image_features"]
    np.testing.assert_allclose(actual, expected.numpy(), atol=2e-5)


def test_embedding_and_decoder_equal_transformers_llama(tiny: Checkpoint, backend: TorchBackend) -> None:
    transformers = pytest.importorskip("transformers")
    config = config_of(tiny)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: config[name] for name in (*names, "vocab_size", "rms_norm_eps", "max_position_embeddings")}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rope_parameters=rope)).eval()
    llama.load_state_dict(published(tiny, "llm."))
    ids = np.random.default_rng(5).integers(0, config["vocab_size"], (1, 23))
    with torch.no_grad():
        expected = llama(torch.from_numpy(ids)).logits.numpy()
    embeds = backend.run(EMBED, {"input_ids": ids})["inputs_embeds"]
    state = backend.start(32)
    inputs = {"inputs_embeds": embeds, "position_ids": np.arange(23)[None]}
    np.testing.assert_allclose(backend.forward(state, inputs, np.arange(23)), expected, atol=1e-4)


def test_the_whole_model_says_what_the_published_code_says() -> None:
    checkpoint, case = open_checkpoint(GOLDEN), read_case(GOLDEN)
    backend, processor = TorchBackend(checkpoint.spec, checkpoint.weights), checkpoint.processor()
    asked = question(case, "", processor)
    images = processor.images(asked.pictures)
    for index, image in enumerate(images):
        piece = case.inputs[f"slice_uint8_{index}"].transpose(2, 0, 1)
        np.testing.assert_allclose(image.vision["pixel_values"][0], (piece / 255 - 0.5) / 0.5, atol=1e-6)
        actual = backend.run(VISION, image.vision)["vision_features"]
        np.testing.assert_allclose(actual, case.outputs[f"vision_{index}"], atol=2e-5)
    said = record(backend, processor, Limits(512, 7), asked, 12, case.outputs["greedy_ids"])
    for name, tolerance in {"connector": 2e-5, "inputs_embeds": 2e-5, "prefill_logits": 1e-4, "step_logits": 1e-4}.items():
        expected = case.outputs[name]
        np.testing.assert_allclose(fitted(said.pieces.get(name) or [said.arrays[name]], expected), expected, atol=tolerance)
    np.testing.assert_array_equal(
        said.arrays["greedy_ids"], case.outputs["greedy_ids"].reshape(said.arrays["greedy_ids"].shape)
    )
