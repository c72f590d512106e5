"""What ``info`` says of a package is what its files and its manifest are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from runtime_py.command.cli import main
from runtime_py.command.info import lines


def test_the_facts_are_those_of_the_files_and_the_manifest(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "-p", str(exported), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    written = (exported / "manifest.json").read_bytes()
    manifest = json.loads(written)
    sizes = {row["path"]: (exported / row["path"]).stat().st_size for row in manifest["files"]}
    assert (facts["files"], facts["bytes"]) == (len(sizes), sum(sizes.values()))
    assert facts["bytes_by_folder"] == {
        ".": sum(size for path, size in sizes.items() if "/" not in path),
        "onnx/": sum(size for path, size in sizes.items() if path.startswith("onnx/")),
        "selftest/": sum(size for path, size in sizes.items() if path.startswith("selftest/")),
    }
    assert facts["manifest"] == f"sha256:{hashlib.sha256(written).hexdigest()}"
    assert facts["layers_by_storage"] == {"fp32": len(manifest["assignments"])}
    for name in ("family", "variant", "target", "precision", "waivers", "edgeproof", "tools"):
        assert facts[name] == manifest[name]
    assert facts["limits"] == {name: manifest["limits"][name] for name in ("context", "prefill_chunk")}
    assert facts["source"] == {"id": manifest["source"]["id"], "revision": None}
    assert facts["licence"] == manifest["licence"]["name"]
    assert (facts["runtime_backend"], facts["backends"]) == ("ort", ["onnx"])
    assert (facts["verification"], facts["waivers"][0]["name"]) == ("not run", "skip-verify")
    assert (facts["code"], facts["trust"]) == ([], "not needed: data alone is opened")


def test_people_get_the_same_in_lines(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "-p", str(exported), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["info", "-p", str(exported)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == lines(facts)
    assert "family             minicpm-v" in said
    assert f"bytes              {facts['bytes']:,}" in said
    assert "source             id minicpm-v, revision none" in said
    assert "code               none" in said
    folders = ", ".join(f"{name} {size:,}" for name, size in facts["bytes_by_folder"].items())
    assert f"bytes by folder    {folders}" in said
