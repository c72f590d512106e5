from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from runtime_py import package
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.session import Limits


def write(folder: Path, contents: dict[str, bytes], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    rows = [{"path": n, "bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in contents.items()]
    manifest = {
        "schema": 1,
        "edgeproof": "0.1.0",
        "family": "minicpm-v",
        "variant": "1.0",
        "target": "cpu",
        "precision": "fp32",
        "runtime_backend": "ort",
        "processor": "minicpm_v",
        "runtime": {},
        "generation": {
            "stop_ids": [2],
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "max_new_tokens": 8,
        },
        "limits": {"context": 64, "prefill_chunk": 8, "batch": 1},
        "contracts": {
            "embed_tokens": {
                "stage": "embed_tokens",
                "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "tokens"]}],
                "outputs": [{"name": "inputs_embeds", "dtype": "float32", "shape": ["batch", "tokens", 8]}],
            }
        },
        "backends": {"outside": {}},
        "files": rows,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


FILES = {"onnx/a.bin": b"weights", "config.json": b"{}", "onnx/b.bin": b"more"}


def test_a_folder_beside_or_around_a_package_is_told_where_it_is(tmp_path: Path) -> None:
    first, second = (write(tmp_path / "repo" / name / "1" / "package", FILES) for name in "ab")
    third = write(tmp_path / "out" / "minicpm-v-cpu-int4", FILES)
    write(tmp_path / "out" / "other.partial", FILES)
    for folder, meant in (
        (tmp_path / "repo", f"pass {first} or {second}"),
        (tmp_path / "repo" / "b", f"pass {second}"),
        (second / "onnx", f"pass {second}"),
        (tmp_path / "out", f"pass {third}"),
        (tmp_path, "export it again"),
    ):
        with pytest.raises(PackageError, match=r"no manifest\.json") as error:
            package.read(folder)
        assert error.value.next_step == meant


def test_a_whole_package_passes(tmp_path: Path) -> None:
    opened = package.read(write(tmp_path, FILES, limits={"context": 64, "prefill_chunk": 8, "batch": 3}))
    package.verify(opened)
    assert opened.limits == Limits(context=64, prefill_chunk=8, batch=3)
    assert opened.size == 13 and opened.contracts["embed_tokens"].stage == "embed_tokens"
    opened = package.read(write(tmp_path, FILES, limits={"context": 64, "prefill_chunk": 8}))
    assert opened.limits == Limits(context=64, prefill_chunk=8, batch=1)


def test_everything_that_differs_is_in_one_error(tmp_path: Path) -> None:
    files = {**FILES, "c.bin": b"same size"}
    opened = package.read(write(tmp_path, files))
    (tmp_path / "onnx/a.bin").unlink()
    (tmp_path / "onnx/b.bin").write_bytes(b"more bytes")
    (tmp_path / "c.bin").write_bytes(b"SAME SIZE")
    (tmp_path / "new.bin").touch()
    with pytest.raises(PackageError) as caught:
        package.verify(opened)
    text = str(caught.value)
    for part in ("missing: onnx/a.bin", "size: onnx/b.bin has 10", "content: c.bin", "extra: new.bin", "in 4 files"):
        assert part in text
    assert "config.json" not in text
    with pytest.raises(PackageError, match="in 3 files"):
        package.verify(opened, "size")
    package.verify(opened, "off")


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    content = bytes(3_000_000)
    opened = package.read(write(tmp_path, {"big.bin": content}))
    (tmp_path / "big.bin").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(PackageError, match=r"content: big\.bin"):
        package.verify(opened)


@pytest.mark.parametrize("path", ["../secret", "a/../../b", "/etc/passwd", "", ".", "a\\..\\b", "C:/x", "a\0b"])
def test_paths_that_leave_the_package_are_refused(tmp_path: Path, path: str) -> None:
    write(tmp_path, FILES, files=[{"path": path, "bytes": 1, "sha256": "0" * 64}])
    with pytest.raises(PackageError, match=r"files\[0\]\.path"):
        package.read(tmp_path)


def test_links_that_leave_the_package_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", FILES)
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (folder / "onnx/a.bin").unlink()
    (folder / "onnx/a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="link that leaves"):
        package.verify(package.read(folder))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"schema 3, written by edgeproof '9\.9'"):
        package.read(write(tmp_path, FILES, schema=3, edgeproof="9.9"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": "1"}', '{"schema": 1}', "\udcff"])
def test_damaged_manifests_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(PackageError, match=r"manifest\.json"):
        package.read(tmp_path)


def test_folders_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        package.read(tmp_path / "none")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    with pytest.raises(PackageError, match="--resume"):
        package.read(partial)
    with pytest.raises(UsageError, match="verify 'deep'"):
        package.verify(package.read(write(tmp_path / "p", FILES)), "deep")  # type: ignore[arg-type]
