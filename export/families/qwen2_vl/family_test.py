"""Qwen2-VL in both layouts of its config, told apart from Awaker2.5-VL, and its marks looked up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from export.families.qwen2_vl.family import FAMILY
from export.families.registry import families, recognise
from export.source.hub import DEMO_FOLDER
from export.source.tensor_source import EmptySource, TensorInfo
from export.specs import ModelSpec
from runtime_py.errors import CheckpointError, EdgeproofError

GOLDEN = Path(__file__).parents[3] / "parity_tests" / "goldens" / "qwen2-vl"
DEMO = DEMO_FOLDER / "awaker2.5-vl"
TEXT = {
    **{"hidden_size": 48, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 208, "max_position_embeddings": 512},
    **{"bos_token_id": 194, "eos_token_id": 196},
}
VISION = {"depth": 2, "embed_dim": 24, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 48, "patch_size": 6}
TOKENS = {"vision_start_token_id": 203, "vision_end_token_id": 204, "image_token_id": 206, "video_token_id": 207}


def spec(config: dict[str, Any]) -> ModelSpec:
    marks = {"<|im_start|>": 195, "<|im_end|>": 196}
    return FAMILY.spec({"added_tokens": marks, **config}, EmptySource())


def test_both_layouts_describe_one_model() -> None:
    """4.45 wrote one flat object, 5.24 writes two; its class reads both alike."""
    made = pytest.importorskip("transformers").Qwen2VLConfig
    scaling = {"type": "mrope", "mrope_section": [1, 2, 3]}
    flat = {**TEXT, **TOKENS, "rope_theta": 5e4, "rope_scaling": scaling, "tie_word_embeddings": False}
    flat["vision_config"] = {**VISION, "in_chans": 3, "spatial_patch_size": 6}
    rope = {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [1, 2, 3]}
    new = made(text_config={**TEXT, "rope_parameters": rope}, vision_config=VISION, **TOKENS).to_dict()
    assert "text_config" in new and "rope_theta" not in new
    assert spec(new) == spec(flat)
    theirs = made(**{key: value for key, value in flat.items() if key != "vision_config"}, vision_config=VISION).text_config
    ours = spec(flat).decoder
    assert (ours.rope.theta, ours.norm_eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    assert (ours.kv_heads, ours.max_positions) == (theirs.num_key_value_heads, theirs.max_position_embeddings)


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True), (True, None), (None, True)])
def test_a_tie_is_read_in_either_place(outer: bool | None, inner: bool | None) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"], config["tie_word_embeddings"] = inner, outer
    assert spec(config).decoder.tied_head


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"rope_type": "linear"}},
        {"in_channels": 4},
        {"hidden_size": 64},
        {"num_heads": 5},
        {"spatial_patch_size": 7},
    ],
)
def test_another_tower_is_refused(changes: dict[str, Any]) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    config["vision_config"] |= changes
    with pytest.raises(EdgeproofError, match="vision_config"):
        spec(config)


@pytest.mark.parametrize("sections", [[1, 2, 4], [6], [1, 2, 0, 3], "1 2 3", None])
def test_sections_must_share_out_half_a_head(sections: Any) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    config["text_config"]["rope_parameters"]["mrope_section"] = sections
    with pytest.raises(CheckpointError, match="mrope_section"):
        spec(config)


def copied(folder: Path, to: Path, **config: Any) -> Path:
    """A checkpoint with some keys of its config.json changed."""
    shutil.copytree(folder, to)
    value = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**value, **config}))
    return to


def test_names_of_a_state_dictionary_are_read_as_the_published_ones(tmp_path: Path) -> None:
    """transformers 5.24 loads a file under either names alike; trainers that save ``state_dict()`` write the longer ones."""
    stored = FAMILY.open_source(GOLDEN)
    longer = {"visual.": "model.visual.", "model.": "model.language_model.", "lm_head.": "lm_head."}
    tensors = {}
    for name in stored.infos:
        old = next(begin for begin in longer if name.startswith(begin))
        tensors[longer[old] + name.removeprefix(old)] = stored.read(name)
    save_file(tensors, str(tmp_path / "model.safetensors"))
    read = FAMILY.open_source(tmp_path)
    assert sorted(read.infos) == sorted(stored.infos)
    assert all(read.read(name).equal(stored.read(name)) for name in stored.infos)


def test_saved_rotary_frequencies_are_passed_over(tmp_path: Path) -> None:
    """transformers drops them as it loads: they are computed from the config."""
    stored = FAMILY.open_source(GOLDEN)
    tensors = {name: stored.read(name) for name in stored.infos}
    names = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq", "visual.rotary_pos_emb.inv_freq")
    save_file(tensors | {name: torch.ones(4) for name in names}, str(tmp_path / "model.safetensors"))
    config = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    weights = FAMILY.tensors.map(FAMILY.spec(config, stored), FAMILY.open_source(tmp_path))
    weights.check()


def test_the_base_and_the_adapted_model_are_told_apart(tmp_path: Path) -> None:
    assert recognise(GOLDEN).name == "qwen2-vl"
    assert recognise(DEMO).name == "awaker2.5-vl"
    settings = copied(GOLDEN, tmp_path / "base-with-settings")
    (settings / "moe_config.json").write_text("{}")
    assert recognise(settings).name == "qwen2-vl"
    (settings / "model.safetensors").unlink()
    assert recognise(settings).name == "awaker2.5-vl"
    bare = tmp_path / "adapted-without-config"
    bare.mkdir()
    shutil.copy(DEMO / "pytorch_model.bin", bare)
    assert recognise(bare).name == "awaker2.5-vl"


@pytest.mark.parametrize(
    ("eos", "stops"), [(674, {674, 676}), ([676, 674], {674, 676}), (None, {674, 676}), ([5], {5, 674, 676})]
)
def test_turn_marks_are_the_tokenizers_whatever_ends_an_answer(eos: Any, stops: set[int], tmp_path: Path) -> None:
    folder = copied(DEMO, tmp_path / "demo", eos_token_id=eos)
    family = recognise(folder)
    spec = family.spec(family.load_config(folder), family.open_source(folder))
    marks = spec.runtime["prompt"]["marks"]
    assert (marks["<|im_start|>"], marks["<|im_end|>"]) == (675, 676)
    assert set(spec.generation["stop_ids"]) == {*stops, 676}


def test_a_tokenizer_without_the_marks_is_refused(tmp_path: Path) -> None:
    folder = copied(DEMO, tmp_path / "demo")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|other|>"))
    family = recognise(folder)
    with pytest.raises(CheckpointError, match=r"no token <\|im_start\|>"):
        family.spec(family.load_config(folder), EmptySource())


def test_a_tensor_without_the_axis_a_size_is_read_from_is_one_error(tmp_path: Path) -> None:
    info = TensorInfo("base_model.model.model.layers.0.self_attn.o_proj.lora_moe_A.0.weight", "float32", (), tmp_path, 4)

    class Odd(EmptySource):
        infos: Mapping[str, TensorInfo] = {info.name: info}

    family = families()["awaker2.5-vl"]
    with pytest.raises(CheckpointError, match=r"has the shape \[\]"):
        family.spec(family.published_config("", "tiny"), Odd())
