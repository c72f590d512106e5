"""A package whose files are not what its manifest lists, or lead elsewhere, is refused; one as a hub gives it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import runtime_py
from runtime_py import package
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.generate import Overrides
from runtime_py.package.conftest import edit
from runtime_py.package.files import DOWNLOADED_BESIDE, problem


def test_external_tensors_of_a_graph(copy: Path, tmp_path: Path) -> None:
    """A graph, hashed and listed, that reads another file."""
    onnx = pytest.importorskip("onnx")
    graph = copy / "onnx" / "connector.onnx"
    model = onnx.load(str(graph), load_external_data=False)
    (tmp_path / "outside.data").write_bytes((copy / "onnx" / "vision_encoder.onnx_data_1").read_bytes())
    (copy / "README.md").unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "outside.data", copy / "README.md")
    for location in (
        "../../outside.data",
        str(tmp_path / "outside.data"),
        "../README.md",
        "sub/../vision_encoder.onnx_data_1",
    ):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        graph.write_bytes(model.SerializeToString())
        edit(copy, lambda m: m.update(files=[row for row in m["files"] if row["path"] != "README.md"]))
        opened = package.read(copy)
        with pytest.raises(PackageError, match=r"reference: onnx/connector\.onnx reads"):
            package.verify(opened)
        with pytest.raises(PackageError, match=r"onnx/connector\.onnx reads .*no row"):
            runtime_py.load(copy, verify="off")


LINKS: list[tuple[str, Callable[[Path, Path], None], str]] = [
    ("a link to outside", lambda path, other: path.symlink_to(other), "link that leaves the package"),
    ("a link to nowhere", lambda path, other: path.symlink_to(other / "none"), "link that leads nowhere"),
    ("a link to itself", lambda path, _: path.symlink_to(path), "link that leads nowhere"),
    ("a link to a device", lambda path, _: path.symlink_to("/dev/zero"), "link that leaves the package"),
    ("a pipe", lambda path, _: os.mkfifo(path), "no regular file"),
    ("a folder", lambda path, _: path.mkdir(), "no regular file"),
]


@pytest.mark.parametrize(("make", "words"), [case[1:] for case in LINKS], ids=[case[0] for case in LINKS])
@pytest.mark.parametrize("name", ["onnx/connector.onnx", "tokenizer.json"])
def test_what_is_no_plain_file(
    copy: Path, tmp_path: Path, make: Callable[[Path, Path], None], words: str, name: str
) -> None:
    other = tmp_path / "other"
    shutil.copyfile(copy / name, other)
    (copy / name).unlink()
    make(copy / name, other)
    opened = package.read(copy)
    for depth in ("full", "size"):
        with pytest.raises(PackageError, match=words):
            package.verify(opened, depth)  # type: ignore[arg-type]
    with pytest.raises(PackageError, match=words):
        runtime_py.load(copy, verify="off")


def test_links_inside_are_followed_and_folders_that_are_links_are_not(copy: Path, tmp_path: Path) -> None:
    (copy / "onnx" / "vision_encoder.onnx_data_1").rename(copy / "weights.bin")
    (copy / "onnx" / "vision_encoder.onnx_data_1").symlink_to("../weights.bin")
    with pytest.raises(PackageError, match=r"in 1 file:\n  extra: weights\.bin"):
        package.verify(package.read(copy))
    edit(copy, lambda _: None)
    package.verify(package.read(copy))
    (copy / "more").symlink_to(tmp_path)
    with pytest.raises(PackageError, match="extra: more"):
        package.verify(package.read(copy))
    (copy / "more").unlink()
    shutil.move(copy / "onnx", tmp_path / "onnx")
    (copy / "onnx").symlink_to(tmp_path / "onnx")
    with pytest.raises(PackageError, match="link that leaves the package"):
        package.verify(package.read(copy))


def test_a_blobs_folder_is_the_packages_own_in_a_cache_of_the_hub_alone(copy: Path, tmp_path: Path) -> None:
    """Two folders above a package that is no snapshot it is another's, whatever the manifest hashed."""
    for kept, words in (("folder", "link that leaves the package: tokenizer.json"), ("snapshots", "")):
        folder, blobs = tmp_path / kept / kept / "package", tmp_path / kept / "blobs"
        shutil.copytree(copy, folder)
        blobs.mkdir()
        (folder / "tokenizer.json").rename(blobs / "aa")
        (folder / "tokenizer.json").symlink_to(blobs / "aa")
        assert problem(folder, "tokenizer.json") == words


def test_the_manifest_itself_is_a_plain_file(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").rename(tmp_path / "manifest.json")
    (copy / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(PackageError, match="link that leaves the package"):
        package.read(copy)
    (copy / "manifest.json").unlink()
    os.mkfifo(copy / "manifest.json")
    with pytest.raises(PackageError, match="no regular file"):
        package.read(copy)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_bytes(b" " * (5 << 20))
    with pytest.raises(PackageError, match="at most 4,194,304"):
        package.read(copy)


def test_a_package_downloaded_from_a_hub_runs(exported: Path, tmp_path: Path) -> None:
    """Both layouts: a snapshot in the cache, all of it links; and a folder with what every download adds."""
    cache = tmp_path / "models--user--name"
    snapshot, blobs = cache / "snapshots" / "0123abcd", cache / "blobs"
    blobs.mkdir(parents=True)
    for path in (path for path in exported.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blobs / digest)
        link = snapshot / path.relative_to(exported)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / digest, link.parent))
    local = Path(shutil.copytree(exported, tmp_path / "local"))
    for folder in (snapshot, local):
        (folder / ".gitattributes").write_text("*.onnx_data filter=lfs\n")
        (folder / ".cache" / "huggingface" / "download").mkdir(parents=True)
        (folder / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("x")
        package.verify(package.read(folder))
        with runtime_py.load(folder, threads=1) as model:
            assert model.chat("What colour?", overrides=Overrides(max_new_tokens=2, temperature=0.0)).ids
    assert {".gitattributes", ".cache"} <= DOWNLOADED_BESIDE
    (local / "onnx" / ".gitattributes").write_text("not at the top")
    with pytest.raises(PackageError, match=r"extra: onnx/\.gitattributes"):
        package.verify(package.read(local))


@pytest.mark.parametrize("name", [".DS_Store", "onnx/.DS_Store", "selftest/Thumbs.db", "desktop.ini"])
def test_what_systems_put_into_folders_that_are_looked_at(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"Bud1")
    package.verify(package.read(copy))
    (copy / name).rename(copy / "x.ini")
    with pytest.raises(PackageError, match=r"extra: x\.ini"):
        package.verify(package.read(copy))


def test_a_folder_whose_name_is_no_utf8(copy: Path, tmp_path: Path) -> None:
    """The libraries that open its files would fail each in words of its own."""
    strange = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe"))
    copy.rename(strange)
    with pytest.raises(UsageError, match="no UTF-8"):
        runtime_py.load(strange, threads=1)


def test_an_unlisted_tokenizer_file_is_not_read(copy: Path) -> None:
    (copy / "added_tokens.json").write_text('{"<evil>": 3}')
    for depth in ("full", "size", "off"):
        with pytest.raises(PackageError, match=r"added_tokens\.json"):
            runtime_py.load(copy, verify=depth)  # type: ignore[arg-type]


def test_ids_without_a_row_in_the_table_are_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    first = 1 + max(value["model"]["vocab"].values())
    value["added_tokens"].append({**value["added_tokens"][-1], "id": first, "content": "<beyond>"})
    path.write_text(json.dumps(value), encoding="utf-8")
    edit(copy, lambda _: None)
    with pytest.raises(PackageError, match=f"gives ids up to {first}"):
        runtime_py.load(copy, threads=1)
