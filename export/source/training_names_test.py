"""Names that training frameworks put around a model's, and adapters that were not merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.source.checkpoint import open_checkpoint
from export.source.tensor_source import TensorSource
from export.source.training_names import common_prefix
from export.source.weight_map import WeightMap, take
from runtime_py.errors import CheckpointError

PLAIN = {"model.embed.weight": torch.arange(8.0).view(4, 2), "head.bias": torch.arange(3.0)}


def saved(folder: Path, names: dict[str, str]) -> Path:
    save_file({names.get(name, name): value for name, value in PLAIN.items()}, str(folder / "model.safetensors"))
    return folder


def renamed(prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in PLAIN}


def same(source: TensorSource) -> bool:
    return set(source.infos) == set(PLAIN) and all(
        source.infos[name].name == name and source.read(name).equal(value) for name, value in PLAIN.items()
    )


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "base_model.model.", "module.base_model.model."],
)
def test_what_stands_before_every_name_is_taken_off(tmp_path: Path, prefix: str) -> None:
    assert same(open_checkpoint(saved(tmp_path, renamed(prefix))))


def test_compiled_and_sharded_parts_are_understood_wherever_they_stand(tmp_path: Path) -> None:
    name = "model._orig_mod.embed._checkpoint_wrapped_module.weight"
    assert same(
        open_checkpoint(saved(tmp_path, {"model.embed.weight": name, "head.bias": "_fsdp_wrapped_module.head.bias"}))
    )


def test_published_names_of_adapters_stay_where_a_family_has_them(tmp_path: Path) -> None:
    saved(tmp_path, renamed("module.base_model.model."))
    assert set(open_checkpoint(tmp_path, adapters=True).infos) == {f"base_model.model.{name}" for name in PLAIN}


@pytest.mark.parametrize(
    "name",
    [
        *("base_model.model.model.q.lora_A.weight", "q.lora_B.default.weight", "q.base_layer.weight"),
        *("q.lora_embedding_A.default", "q.modules_to_save.default.weight"),
    ],
)
def test_adapters_that_were_not_merged_are_refused_by_name(tmp_path: Path, name: str) -> None:
    saved(tmp_path, {"head.bias": name})
    with pytest.raises(CheckpointError, match="not merged: .*" + name) as caught:
        open_checkpoint(tmp_path)
    assert "merge_and_unload" in caught.value.next_step
    assert name in open_checkpoint(tmp_path, adapters=True).infos


def test_partial_lora_of_a_family_is_no_adapter(tmp_path: Path) -> None:
    name = "language_model.model.layers.0.attention.wo.Plora_A.weight"
    assert name in open_checkpoint(saved(tmp_path, {"head.bias": name})).infos


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, {"head.bias": "model._orig_mod.embed.weight"})
    with pytest.raises(CheckpointError, match="are one tensor"):
        open_checkpoint(tmp_path)


def test_another_prefix_is_named_with_what_to_do(tmp_path: Path) -> None:
    source = open_checkpoint(saved(tmp_path, renamed("my.trainer.net.")))
    rules = [take(name, name, tuple(value.shape)) for name, value in PLAIN.items()]
    with pytest.raises(CheckpointError) as caught:
        WeightMap(rules, source).check()
    assert "begin with 'my.trainer.net.'" in caught.value.next_step


def test_a_prefix_is_only_named_where_it_explains_most() -> None:
    assert common_prefix(["a.b.c", "a.b.d", "x.y"], ["b.c", "b.d"]) == "a."
    assert common_prefix(["a.b"], ["c", "d"]) == ""
    assert common_prefix([], []) == ""


def test_long_lists_are_cut_with_their_count(tmp_path: Path) -> None:
    save_file({f"w{i:03}": torch.zeros(1) for i in range(70)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError) as caught:
        WeightMap([], open_checkpoint(tmp_path)).check()
    lines = caught.value.what.splitlines()
    assert "70 problem(s)" in lines[0] and len(lines) == 22 and lines[-1].strip() == "and 50 more"
