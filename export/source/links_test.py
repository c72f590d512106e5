"""Links of a checkpoint: inside it and inside the hub's cache they are followed, elsewhere they are not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.source.checkpoint import open_checkpoint
from export.source.links import leads_inside, may_be_read
from export.source.side_files import side_files
from runtime_py.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_plain_files_and_links_inside(checkpoint: Path) -> None:
    (checkpoint / "parts").mkdir()
    (checkpoint / "parts" / "real.json").write_text("{}")
    (checkpoint / "tokenizer.json").symlink_to("parts/real.json")
    assert leads_inside(checkpoint / "config.json", checkpoint)
    assert leads_inside(checkpoint / "tokenizer.json", checkpoint)
    assert [file.name for file in side_files(checkpoint, [checkpoint])] == ["config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "tokenizer.json", "generation_config.json", "merges.txt"])
def test_a_side_file_that_is_a_link_to_elsewhere_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    for target in (tmp_path / "secret", "../secret", "/etc/hostname"):
        (checkpoint / name).symlink_to(target)
        with pytest.raises(CheckpointError, match=f"{name} is a link that leaves the checkpoint"):
            side_files(checkpoint, [checkpoint])
        (checkpoint / name).unlink()


def test_a_part_that_is_a_link_to_elsewhere_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "LICENSE").write_text("secret")
    (checkpoint / "part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="LICENSE is a link"):
        side_files(checkpoint, [checkpoint], [checkpoint / "part"])


def test_pipes_and_links_to_themselves_are_refused_and_not_left_out(checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "README.md")
    with pytest.raises(CheckpointError, match=r"README\.md is no file"):
        side_files(checkpoint, [checkpoint])
    (checkpoint / "README.md").unlink()
    (checkpoint / "LICENSE").symlink_to("LICENSE")
    with pytest.raises(CheckpointError, match="LICENSE is a link"):
        side_files(checkpoint, [checkpoint])
    assert not leads_inside(checkpoint / "a\0b", checkpoint)


@pytest.mark.parametrize(
    "name", ["LICENSE\x1b[2J", "LICENSE\n", "LICENSE:x", "LICENSE\\x", "LICENSE" + "x" * 200, "LICENSE\udcff"]
)
def test_names_that_a_package_cannot_hold(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("terms")
    with pytest.raises(CheckpointError, match="the file name"):
        side_files(checkpoint, [checkpoint])


def test_huge_side_files_are_refused(checkpoint: Path) -> None:
    with (checkpoint / "README.md").open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes"):
        side_files(checkpoint, [checkpoint])


def test_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    snapshot, blobs = cache / "models--a--b" / "snapshots" / "0123", cache / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert leads_inside(snapshot / "config.json", snapshot)
    joined = cache / "edgeproof-joined" / "a--b" / "4567"
    joined.mkdir(parents=True)
    (joined / "config.json").symlink_to(snapshot / "config.json")
    assert leads_inside(joined / "config.json", joined)
    for secret in (tmp_path / "secret", cache / "secret", cache / "edgeproof-joined" / "secret", snapshot.parent / "secret"):
        secret.write_text("x")
        for folder in (snapshot, joined):
            (folder / "README.md").symlink_to(secret)
            inside = folder is joined and secret.is_relative_to(cache / "models--a--b")
            assert leads_inside(folder / "README.md", folder) == inside, secret
            (folder / "README.md").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").symlink_to(blobs / "abc")
    assert not leads_inside(elsewhere / "config.json", elsewhere)


@pytest.fixture
def other_disk(tmp_path: Path) -> Path:
    """A checkpoint kept elsewhere: config, licence, one whole file of weights, and shards with an index."""
    folder = tmp_path / "disk" / "model"
    folder.mkdir(parents=True)
    for name in ("config.json", "LICENSE", "tokenizer.json"):
        (folder / name).write_text("{}")
    save_file({"w": torch.zeros(2)}, str(folder / "model.safetensors"))
    return folder


def test_a_model_on_another_disk_may_be_linked_file_by_file(checkpoint: Path, other_disk: Path) -> None:
    (checkpoint / "config.json").unlink()
    for file in other_disk.iterdir():
        (checkpoint / file.name).symlink_to(file)
    assert [file.name for file in side_files(checkpoint, [checkpoint])] == ["LICENSE", "config.json", "tokenizer.json"]
    assert set(open_checkpoint(checkpoint).infos) == {"w"}
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copyfile(other_disk / "model.safetensors", other_disk / "model-00001-of-00001.safetensors")
    (checkpoint / "model-00001-of-00001.safetensors").symlink_to(other_disk / "model-00001-of-00001.safetensors")
    assert set(open_checkpoint(checkpoint).infos) == {"w"}


def test_a_folder_that_is_a_link_to_a_model_is_one(checkpoint: Path, other_disk: Path) -> None:
    (checkpoint / "part").symlink_to(other_disk)
    assert may_be_read(checkpoint / "part" / "LICENSE", checkpoint)
    assert set(open_checkpoint(checkpoint / "part").infos) == {"w"}


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "model.safetensors"])
def test_the_rule_is_the_same_for_every_file(checkpoint: Path, other_disk: Path, tmp_path: Path, name: str) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / name).write_text("private")
    (tmp_path / "key").write_text("private")
    for target in (tmp_path / "key", notes / name, other_disk / "config.json", notes):
        is_model = target == notes / name and name == "model.safetensors"
        (checkpoint / name).symlink_to(target)
        assert may_be_read(checkpoint / name, checkpoint) == is_model
        if not is_model and not target.is_dir():
            with pytest.raises(CheckpointError, match=f"{name} is a link that leaves the checkpoint"):
                (open_checkpoint if "safetensors" in name else lambda home: side_files(home, [home]))(checkpoint)
        (checkpoint / name).unlink()
    (checkpoint / name).symlink_to(other_disk / name)
    assert may_be_read(checkpoint / name, checkpoint)


def test_a_link_into_the_hubs_cache(tmp_path: Path, checkpoint: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "01", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    (checkpoint / "tokenizer.json").symlink_to(snapshot / "tokenizer.json")
    (checkpoint / "LICENSE").symlink_to(snapshot / "tokenizer.json")
    (checkpoint / "README.md").symlink_to(blobs / "abc")
    names = ("tokenizer.json", "LICENSE", "README.md")
    assert [may_be_read(checkpoint / name, checkpoint) for name in names] == [True, False, False]
