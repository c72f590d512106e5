"""Side files, and the manifest's order and determinism."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from export.families.registry import families
from export.package.journal import FileRecord
from export.package.manifest import (
    ManifestParts,
    copy_side_files,
    manifest,
    relative_name,
    write_manifest,
)
from export.quantisation.spec import Assignment, LayerShape, Storage
from export.source.side_files import side_files
from export.source.tensor_source import EmptySource
from targets.base import Limits
from targets.registry import target_named

KEYS = [
    *("schema", "edgeproof", "family", "variant", "target", "precision", "runtime_backend", "processor", "runtime"),
    *("pictures", "generation", "limits", "contracts", "backends", "assignments", "files", "source", "tools", "licence"),
    *("waivers", "verification", "facts"),
]


def parts() -> ManifestParts:
    family = families()["minicpm-v"]
    spec = family.spec(family.published_config("", "tiny"), EmptySource())
    target = target_named("cpu")
    layer = LayerShape("decoder.head", "head", 320, 256)
    return ManifestParts(
        version="0.1.0",
        spec=spec,
        processor=family.processor,
        target=target,
        precision="int4",
        limits=target.limits,
        backends={"onnx": {"stages": {}}},
        assignments={"decoder.head": Assignment(layer, Storage.INT4, "ort_block32", "")},
        files=[FileRecord("b", 2, "2"), FileRecord("a", 1, "1")],
        source_id="minicpm-v",
        source_revision=None,
        source_files=[],
        tools={"torch": "2", "onnx": "1"},
        licence=family.licence,
        licence_files=[],
        waivers=[],
        verification={"verdict": "not run", "probes": []},
    )


def test_manifest_keys_are_in_the_documented_order() -> None:
    value = manifest(parts())
    assert list(value) == KEYS
    assert [row["path"] for row in value["files"]] == ["a", "b"]
    assert list(value["tools"]) == ["onnx", "torch"]
    assert value["assignments"]["decoder.head"] == {"storage": "int4", "grid": "ort_block32", "reason": ""}
    assert set(value["contracts"]) == {"vision_encoder", "connector", "embed_tokens", "decoder"}


def test_limits_and_what_a_manifest_adds_of_its_own_are_in_it() -> None:
    value = manifest(replace(parts(), limits=Limits(64, 16, 4), source_revision="f00d", facts={"added": 1}))
    assert value["limits"] == {"context": 64, "prefill_chunk": 16, "batch": 4}
    assert (value["source"]["id"], value["source"]["revision"]) == ("minicpm-v", "f00d")
    assert value["facts"] == {**parts().spec.facts, "added": 1}
    shared = Assignment(
        LayerShape("embed_tokens.table", "embedding", 320, 256), Storage.INT4, "g", "", shares="decoder.head"
    )
    rows = manifest(replace(parts(), assignments={"embed_tokens.table": shared}))["assignments"]
    assert rows["embed_tokens.table"]["shares"] == "decoder.head"


def test_manifest_bytes_are_equal_for_equal_parts(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, manifest(parts()))
    first = (tmp_path / "a/manifest.json").read_bytes()
    assert first == (tmp_path / "b/manifest.json").read_bytes()
    assert json.loads(first)["schema"] == 2
    assert str(tmp_path).encode() not in first


def test_side_files_are_copied_whole_and_code_and_weights_are_not(tmp_path: Path) -> None:
    checkpoint, folder = tmp_path / "c", tmp_path / "p"
    checkpoint.mkdir()
    folder.mkdir()
    kept = {"config.json": b"{}", "tokenizer.model": bytes(range(256)), "LICENSE": b"free", "README.md": b"# m"}
    for name, content in kept.items():
        (checkpoint / name).write_bytes(content)
    for name in ("modeling_minicpmv.py", "model.safetensors", "pytorch_model.bin", "training_args.bin"):
        (checkpoint / name).write_bytes(b"x")
    files = side_files(checkpoint, [checkpoint])
    kept["checkpoint.README.md"] = kept.pop("README.md")  # the name is that of the package's own card on the hub
    assert [file.name for file in files] == sorted(kept)
    assert {path.name for path in copy_side_files(files, checkpoint, folder)} == set(kept)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept


def test_no_machine_path_is_recorded(tmp_path: Path) -> None:
    assert relative_name(tmp_path / "c/vision/model.safetensors", tmp_path / "c") == "vision/model.safetensors"
    assert relative_name(tmp_path / "elsewhere/model.safetensors", tmp_path / "c") == "elsewhere/model.safetensors"
