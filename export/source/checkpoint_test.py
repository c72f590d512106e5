"""Which files of a folder are read, how an index is checked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.source.checkpoint import joined, open_checkpoint, open_files
from runtime_py.errors import CheckpointError


def tensor(value: float) -> torch.Tensor:
    return torch.full((2, 3), value)


def write_index(folder: Path, weight_map: object, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def sharded(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"b": tensor(1), "a": tensor(2)}, folder / "model-00001-of-00002.safetensors")
    save_file({"c": tensor(3)}, folder / "model-00002-of-00002.safetensors")
    return {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in (("c", 2), ("b", 1), ("a", 1))}


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "consolidated.00.pth", "MODEL.ONNX"])
def test_weights_in_another_form_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"holds no weights in a form that is read, but '{name}'"):
        open_checkpoint(tmp_path)


def test_parts_that_deepspeed_saved_are_to_be_joined(tmp_path: Path) -> None:
    (tmp_path / "global_step500").mkdir()
    (tmp_path / "zero_to_fp32.py").write_text("")
    with pytest.raises(CheckpointError, match="holds no weights") as raised:
        open_checkpoint(tmp_path)
    assert "`python zero_to_fp32.py . . --safe_serialization`" in str(raised.value.next_step)


def test_weight_files_are_preferred_in_the_documented_order(tmp_path: Path) -> None:
    """Each kind, as it is added, takes over from the ones after it in the documented order."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "training_args.bin")
    torch.save({"a": torch.zeros(1)}, tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)
    kinds = [
        ("pytorch_model-00001-of-00001.bin", 1.0),
        ("pytorch_model.bin", 2.0),
        ("other.safetensors", 3.0),
        ("model-00001-of-00001.safetensors", 4.0),
        ("model.safetensors", 5.0),
    ]
    for name, value in kinds:
        (torch.save if name.endswith("bin") else save_file)({"a": tensor(value)}, tmp_path / name)
        assert open_checkpoint(tmp_path).read("a")[0, 0] == value


def test_index_order_and_values(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path))
    source = open_checkpoint(tmp_path)
    assert list(source.infos) == ["c", "b", "a"]
    assert source.read("a", 1, 2).tolist() == [[2.0] * 3]
    assert source.infos["c"].file.name == "model-00002-of-00002.safetensors"


def test_a_shard_spelled_in_two_ways_is_one(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    write_index(tmp_path, {**weight_map, "a": f"./{weight_map['a']}"})
    assert torch.equal(open_checkpoint(tmp_path).read("a"), tensor(2))


def test_a_pickle_index_names_the_shards(tmp_path: Path) -> None:
    torch.save({"a": tensor(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": tensor(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"b": "pytorch_model-00002-of-00002.bin", "a": "pytorch_model-00001-of-00002.bin"}
    write_index(tmp_path, names, "pytorch_model.bin.index.json")
    source = open_checkpoint(tmp_path)
    assert list(source.infos) == ["b", "a"] and torch.equal(source.read("b"), tensor(2))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", "a\0b", "\\x"])
def test_index_may_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": tensor(1)}, tmp_path / "x.safetensors")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_index(folder, {"a": name})
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A link out of the folder is refused, unless it is the hub cache's own into its blobs."""
    save_file({"a": tensor(1)}, tmp_path / "x.safetensors")
    folder = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    shard = folder / "model-00001-of-00001.safetensors"
    write_index(folder, {"a": shard.name})
    shard.symlink_to("../../../x.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(folder)
    shard.unlink()
    (tmp_path / "x.safetensors").rename(blobs / "abcd")
    shard.symlink_to("../../blobs/abcd")
    assert torch.equal(open_checkpoint(folder).read("a"), tensor(1))


def test_index_disagrees_with_shards(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    weight_map["a"], weight_map["d"] = weight_map["c"], weight_map["c"]
    write_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=r"3 problem\(s\)") as caught:
        open_checkpoint(tmp_path)
    for line in (
        "absent from model-00002-of-00002.safetensors: a",
        "absent from model-00002-of-00002.safetensors: d",
        "in model-00001-of-00002.safetensors, not named there by the index: a",
    ):
        assert line in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_index(tmp_path, sharded(tmp_path))
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors is missing") as caught:
        open_checkpoint(tmp_path)
    assert "2 tensor(s)" in str(caught.value)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 shard\(s\): 1 of 2"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}', "[" * 100_000]
)
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"no weight index|is not JSON|too deeply"):
        open_checkpoint(tmp_path)


def test_no_folder_and_no_weight_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no weight file"):
        open_files([tmp_path / "config.json"])
    with pytest.raises(CheckpointError, match="is missing"):
        open_files([tmp_path / "model.safetensors"])


def test_joined_sources_read_each_tensor_from_its_part(tmp_path: Path) -> None:
    for name, value in (("vit", 1), ("llm", 2)):
        save_file({"a": tensor(value)}, tmp_path / f"{name}.safetensors")
    parts = {f"{name}.": open_files([tmp_path / f"{name}.safetensors"]) for name in ("vit", "llm")}
    source = joined(parts)
    assert {name: info.name for name, info in source.infos.items()} == {"vit.a": "vit.a", "llm.a": "llm.a"}
    assert torch.equal(source.read("llm.a", 0, 1), tensor(2)[:1])
    with pytest.raises(CheckpointError, match="stands for two tensors"):
        joined({"vit": parts["vit."], "vi": joined({"t": parts["llm."]})})


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_what_git_lfs_has_not_fetched_is_said(tmp_path: Path, name: str) -> None:
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer") as told:
        open_checkpoint(tmp_path)
    assert "git lfs pull" in told.value.next_step
