"""Packages of schema 1 keep what they say under the keys of schema 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime_py import package
from runtime_py.command.info import describe
from runtime_py.package import reading
from runtime_py.package.schema_1 import with_storages

OLD: dict[str, Any] = {
    "schema": 1,
    "edgeproof": "0.1.0",
    "family": "minicpm-v",
    "variant": "2.0",
    "target": "cpu",
    "precision": "int4",
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
    "limits": {"context": 64, "prefill_chunk": 16},
    "contracts": {
        "decoder": {
            "stage": "decoder",
            "inputs": [{"name": "inputs_embeds", "dtype": "float32", "shape": ["batch", "tokens", 8]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "outputs", 9]}],
        }
    },
    "backends": {
        "outside": {"cache": {"form": "in-place"}},
        "other": {"assignments": {"decoder.head": {"form": "fp16", "grid": ""}}},
    },
    "assignments": {
        "decoder.head": {"form": "int4", "grid": "ort_int4_b32", "reason": "blocks of 32", "shares": "embed_tokens.table"},
        "connector.out": {"form": "fp16", "grid": "", "reason": ""},
    },
    "files": [],
}


def written(folder: Path, manifest: dict[str, Any]) -> Path:
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def undeclared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is another module's matter."""
    monkeypatch.setattr(reading, "with_prompt", lambda _processor, runtime: runtime)


@pytest.mark.usefixtures("undeclared")
def test_a_package_of_schema_1_is_read_with_the_keys_of_schema_2(tmp_path: Path) -> None:
    manifest = package.read(written(tmp_path, OLD)).manifest
    assert manifest["assignments"]["decoder.head"] == {
        "storage": "int4",
        "grid": "ort_int4_b32",
        "reason": "blocks of 32",
        "shares": "embed_tokens.table",
    }
    assert manifest["backends"]["other"]["assignments"] == {"decoder.head": {"storage": "fp16", "grid": ""}}
    assert manifest["backends"]["outside"] == OLD["backends"]["outside"], "a cache's form is no layer's storage"
    assert manifest["schema"] == 1, "what the package is stays said"


@pytest.mark.usefixtures("undeclared")
def test_both_schemas_are_described_alike(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = package.read(written(tmp_path / "one", OLD))
    two = package.read(written(tmp_path / "two", {**with_storages(OLD), "schema": 2}))
    facts = [{key: value for key, value in describe(opened).items() if key != "manifest"} for opened in (one, two)]
    assert facts[0] == facts[1]
    assert describe(one)["layers_by_storage"] == {"fp16": 1, "int4": 1}
