"""Links of a checkpoint: inside it and inside the hub's cache they are followed, elsewhere they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export.source.links import leads_inside
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


def test_pipes_and_links_to_themselves_are_no_files(checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "README.md")
    (checkpoint / "LICENSE").symlink_to("LICENSE")
    assert [file.name for file in side_files(checkpoint, [checkpoint])] == ["config.json"]
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
