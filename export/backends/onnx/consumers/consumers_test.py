"""The graphs and settings that other tools find: they compute what the stages compute, and onnxruntime-genai opens them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.backends.onnx.backend import OnnxBackend
from export.backends.onnx.conftest import EXACT, GOLDENS, TARGET, Package, export, greedy, prefill
from export.backends.onnx.consumers.genai import genai_config
from export.backends.onnx.consumers.held import Tool, obstacles, placeholder
from export.backends.onnx.consumers.transformers_js import picture_files
from export.checkpoint.opened import open_folder
from runtime_py.backends.ort import OrtBackend
from runtime_py.contracts import CONNECTOR, EMBED, VISION

NEW_TOKENS = 12


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A golden's int4 package with what tools read at its root."""
    made = export("minicpm-v", "int4", tmp_path_factory.mktemp("tools"), **EXACT)
    stated = (GOLDENS / "minicpm-v" / "config.json").read_text()
    (made.folder / "config.json").write_text(stated)
    written = OnnxBackend().tool_files(made.build)
    names = ["config.json", "preprocessor_config.json", "processor_config.json", "genai_config.json"]
    assert [path.name for path in written] == names
    return made


@pytest.fixture
def runtime(package: Package) -> OrtBackend:
    return OrtBackend(package.folder, package.manifest, threads=1)


def opened(package: Package, name: str) -> Any:
    graph = package.manifest["backends"]["onnx"]["further_graphs"][name]
    return onnxruntime.InferenceSession(str(package.folder / graph))


def answered(generator: Any) -> list[int]:
    """The next tokens of onnxruntime-genai, with the one that ends its answer."""
    made: list[int] = []
    while not generator.is_done() and len(made) < NEW_TOKENS:
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return made


def up_to_the_end(package: Package, ids: list[int]) -> list[int]:
    """The first tokens up to and with the one that ends an answer, of which both tools are told."""
    ends = json.loads((package.folder / "genai_config.json").read_text())["model"]["eos_token_id"]
    kept = ids[:NEW_TOKENS]
    return kept[: next((place + 1 for place, token in enumerate(kept) if token in ends), len(kept))]


def test_the_picture_graph_is_the_vision_encoder_and_the_connector(package: Package, runtime: OrtBackend) -> None:
    pixels = package.golden["pixel_values"]
    features = runtime.run(VISION, {"pixel_values": pixels})
    rows = runtime.run(CONNECTOR, features)["image_features"]
    joined = opened(package, "pictures").run(None, {"pixel_values": pixels})[0]
    np.testing.assert_allclose(joined, rows.reshape(-1, rows.shape[-1]), atol=1e-6)


def test_the_embedding_graph_puts_rows_where_the_placeholder_stands(package: Package, runtime: OrtBackend) -> None:
    mark, width = placeholder(package.spec), package.spec.embed.width
    ids = np.array([[5, mark, mark, 7]])
    rows = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    wanted = runtime.run(EMBED, {"input_ids": ids})["inputs_embeds"]
    wanted[0, 1:3] = rows
    session = opened(package, "embedding")
    np.testing.assert_array_equal(session.run(None, {"input_ids": ids, "image_features": rows})[0], wanted)
    plain = session.run(None, {"input_ids": ids[:, [0, 3]], "image_features": rows[:0]})[0]
    np.testing.assert_array_equal(plain, wanted[:, [0, 3]])


def test_the_decoder_of_genai_gives_the_last_logits_and_says_so(package: Package, runtime: OrtBackend) -> None:
    _, logits = prefill(runtime, package.golden["inputs_embeds"], 64)
    session, tokens, spec = opened(package, "last_logits"), logits.shape[1], package.spec.decoder
    feeds = {"inputs_embeds": package.golden["inputs_embeds"], "position_ids": np.arange(tokens)[None]}
    feeds["attention_mask"] = np.ones((1, tokens), np.int64)
    for layer in range(spec.layers):
        for half in ("key", "value"):
            feeds[f"past_key_values.{layer}.{half}"] = np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    assert session.get_outputs()[0].shape[1] == 1
    np.testing.assert_allclose(session.run(["logits"], feeds)[0], logits[:, -1:], atol=1e-5)


def test_settings_name_what_is_there(package: Package) -> None:
    config = json.loads((package.folder / "config.json").read_text())
    assert config["checkpoint"]["model_type"] == "minicpmv"
    suffixes = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4", "q4f16": "_q4f16"}
    for stem, dtype in config["transformers.js_config"]["dtype"].items():
        graph = package.folder / "onnx" / f"{stem}{suffixes[dtype]}.onnx"
        parts = config["transformers.js_config"]["use_external_data_format"][stem]
        data = [graph.with_name(f"{graph.name}_data{f'_{part}' if part else ''}") for part in range(parts)]
        assert all(path.is_file() for path in (graph, *data)), stem
    genai = json.loads((package.folder / "genai_config.json").read_text())["model"]
    assert all((package.folder / genai[part]["filename"]).is_file() for part in ("vision", "embedding", "decoder"))


def test_onnxruntime_genai_answers_a_picture_with_our_tokens(package: Package, runtime: OrtBackend) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    golden, rows = package.golden, package.golden["connector"].reshape(-1, package.spec.embed.width).shape[0]
    state, logits = prefill(runtime, golden["inputs_embeds"], 64)
    wanted, _ = greedy(runtime, state, logits, NEW_TOKENS)
    model = genai.Model(str(package.folder))
    params = genai.GeneratorParams(model)
    ids = golden["input_ids"].astype(np.int32)
    params.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=ids.shape[1] + NEW_TOKENS)
    generator = genai.Generator(model, params)
    given = genai.NamedTensors()
    given["input_ids"], given["pixel_values"] = ids, golden["pixel_values"]
    given["num_image_tokens"] = np.array([rows], np.int64)
    generator.set_inputs(given)
    assert answered(generator) == up_to_the_end(package, wanted)


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("minicpm-v", ()),
        ("omnilmm-12b", ()),
        ("xverse-v", ()),
        ("cogvlm2", ("decoder takes language_index, vision_index, restore_index",)),
        ("awaker2.5-vl", ("vision_encoder takes rotary_angles", "decoder takes gate_input", "position_ids have 3 axes")),
        ("qwen2-vl", ("vision_encoder takes rotary_angles", "position_ids have 3 axes")),
    ],
)
def test_what_keeps_a_model_from_other_tools_is_said(case: str, wanted: tuple[str, ...]) -> None:
    spec = open_folder(GOLDENS / case).spec
    assert obstacles(spec, Tool.TRANSFORMERS_JS) == wanted
    of_genai = {"qwen2-vl": (), "awaker2.5-vl": ("decoder takes gate_input",)}.get(case, wanted)
    assert obstacles(spec, Tool.GENAI) == of_genai


@pytest.mark.parametrize("case", ["minicpm-v", "omnilmm-12b", "xverse-v", "qwen2-vl"])
def test_the_padding_id_stands_in_no_prompt(case: str) -> None:
    spec = open_folder(GOLDENS / case).spec
    prompt = spec.runtime["prompt"]
    taken = [prompt["marks"][mark] for mark in prompt["marks"] if mark in (prompt["begin"], prompt["picture"]["row"])]
    for stated in [placeholder(spec), *taken]:
        config = genai_config(
            spec, TARGET.limits, dict.fromkeys(("pictures", "embedding", "last_logits"), ""), 8, {"pad_token_id": stated}
        )
        assert config["model"]["pad_token_id"] not in [placeholder(spec), *taken]


def test_pictures_that_become_tiles_have_no_processor_elsewhere() -> None:
    spec = open_folder(GOLDENS / "xverse-v").spec
    assert picture_files(spec) == {}
    squared = open_folder(GOLDENS / "minicpm-v").spec
    rows = picture_files(replace(squared, image_rows=9))["processor_config.json"]
    side, patch = squared.image.overview, rows["patch_size"]
    assert (side // patch) ** 2 + rows["num_additional_image_tokens"] == 9


def test_a_model_that_tools_cannot_hold_keeps_its_own_config(tmp_path: Path) -> None:
    made = export("cogvlm2", "fp32", tmp_path, ())
    (tmp_path / "config.json").write_text("{}")
    assert OnnxBackend().tool_files(made.build) == []
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The golden of Qwen2-VL, whose pictures are patches of any grid."""
    made = export("qwen2-vl", "fp32", tmp_path_factory.mktemp("grids"))
    shutil.copyfile(GOLDENS / "qwen2-vl" / "config.json", made.folder / "config.json")
    assert [path.name for path in OnnxBackend().tool_files(made.build)] == ["genai_config.json"]
    return made


def test_rotary_angles_are_worked_out_of_the_grid(grids: Package) -> None:
    session, golden = opened(grids, "pictures"), grids.golden
    rows, start = [], 0
    for grid in golden["p1_image_grid_thw"]:
        pixels = golden["p1_pixel_values"][start : start + grid.prod()]
        rows.append(session.run(None, {"pixel_values": pixels, "image_grid_thw": grid[None]})[0])
        start += grid.prod()
    np.testing.assert_allclose(np.concatenate(rows), golden["p1_connector"], atol=2e-5)


def test_onnxruntime_genai_answers_two_pictures_as_published(grids: Package) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    golden = grids.golden
    ids = golden["p1_input_ids"].astype(np.int32)
    given = genai.NamedTensors()
    given["input_ids"], given["pixel_values"] = ids, golden["p1_pixel_values"]
    given["image_grid_thw"] = golden["p1_image_grid_thw"]
    given["num_image_tokens"] = np.array([len(golden["p1_connector"])], np.int64)
    params = genai.GeneratorParams(model := genai.Model(str(grids.folder)))
    params.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=ids.shape[1] + NEW_TOKENS)
    generator = genai.Generator(model, params)
    generator.set_inputs(given)
    wanted = golden["p1_greedy_ids"][0].tolist()
    assert answered(generator)[: len(wanted)] == up_to_the_end(grids, wanted)
