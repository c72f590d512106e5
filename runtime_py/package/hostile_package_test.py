"""A package whose manifest was forged is refused by every verb, and code from elsewhere never runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime_py import package
from runtime_py.command.cli import main
from runtime_py.errors import PackageError
from runtime_py.package.conftest import Edit, Manifest, edit


def at(place: str, new: Any) -> Edit:
    """Sets the value at a dotted path; numbers index lists."""

    def change(manifest: Manifest) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
        inner: Any = manifest
        for part in way:
            inner = inner[part]
        inner[last] = new

    return change


def without(key: str) -> Edit:
    return lambda manifest: manifest.pop(key)


FORGED: list[tuple[str, Edit, str]] = [
    ("bytes infinite", at("files.0.bytes", float("inf")), "Infinity"),
    ("bytes negative", at("files.0.bytes", -1), r"files\[0\]\.bytes"),
    ("bytes true", at("files.0.bytes", True), r"files\[0\]\.bytes"),
    ("bytes a fraction", at("files.0.bytes", 1.5), r"files\[0\]\.bytes"),
    ("hash in capitals", at("files.0.sha256", "A" * 64), r"files\[0\]\.sha256"),
    ("hash with a line feed", at("files.0.sha256", "0" * 63 + "\n"), r"files\[0\]\.sha256"),
    ("path with a line feed", at("files.0.path", "a\n"), r"files\[0\]\.path"),
    ("path with an empty part", at("files.0.path", "onnx//a"), r"files\[0\]\.path"),
    ("path with a dot part", at("files.0.path", "onnx/./a"), r"files\[0\]\.path"),
    ("path of a folder", at("files.0.path", "onnx/"), r"files\[0\]\.path"),
    ("a row twice", lambda m: m["files"].append(m["files"][0]), "is there twice"),
    ("the manifest a row", at("files.0.path", "manifest.json"), "its own hash"),
    ("files an object", at("files", {}), "files: an object is no array"),
    ("context infinite", at("limits.context", float("inf")), "Infinity"),
    ("context 10^8", at("limits.context", 10**8), r"limits\.context: 100000000"),
    ("context 0", at("limits.context", 0), r"limits\.context"),
    ("context a text", at("limits.context", "64"), r"limits\.context"),
    ("chunk 0", at("limits.prefill_chunk", 0), r"limits\.prefill_chunk"),
    ("picture 30000", at("runtime.image_size", 30_000), r"runtime\.image_size: 30000"),
    ("patch 0", at("runtime.patch_size", 0), r"runtime\.patch_size"),
    ("slices 10^9", at("runtime.max_slices", 10**9), r"runtime\.max_slices"),
    ("queries negative", at("runtime.queries", -1), r"runtime\.queries"),
    ("tokens a list", at("runtime.tokens", [1]), r"runtime\.tokens"),
    ("a mark's id negative", at("runtime.prompt.marks.<s>", -5), r"runtime\.prompt\.marks\.<s>"),
    ("roles numbers", at("runtime.prompt.roles.user", 5), r"runtime\.prompt\.roles\.user"),
    ("order unknown", at("runtime.prompt.order", "random"), r"runtime\.prompt\.order"),
    ("prompt's limit infinite", at("runtime.prompt.limit", float("inf")), "Infinity"),
    ("prompt with more", at("runtime.prompt.code", "x"), r"runtime\.prompt\.code: not expected"),
    ("runtime a list", at("runtime", []), "runtime: a list"),
    ("generation null", at("generation", None), "generation: null"),
    ("temperature NaN", at("generation.temperature", float("nan")), "NaN"),
    ("temperature a text", at("generation.temperature", "0"), r"generation\.temperature"),
    ("stop ids a number", at("generation.stop_ids", 2), r"generation\.stop_ids"),
    ("top_p 0", at("generation.top_p", 0), r"generation\.top_p"),
    ("no answer", at("generation.max_new_tokens", 0), r"generation\.max_new_tokens"),
    ("contracts empty", at("contracts", {}), "contracts"),
    ("contract of another stage", at("contracts.decoder.stage", "connector"), "it is the contract of connector"),
    ("no decoder contract", lambda m: m["contracts"].pop("decoder"), "no contract for decoder"),
    ("contract without its input", at("contracts.embed_tokens.inputs", []), "inputs: no 'input_ids'"),
    ("contract with an input of another name", at("contracts.embed_tokens.inputs.0.name", "ids"), "inputs: no 'input_ids'"),
    ("contract that asks for no input", at("contracts.embed_tokens.inputs.0.required", False), "inputs: no 'input_ids'"),
    ("contract with an output of another name", at("contracts.decoder.outputs.0.name", "x"), "outputs: no 'logits'"),
    ("contract with an unknown type", at("contracts.decoder.inputs.0.dtype", "object"), "dtype"),
    ("contract with a negative size", at("contracts.decoder.inputs.0.shape", [-1]), "shape"),
    ("backends null", at("backends", None), "backends: null"),
    ("backends empty", at("backends", {}), "backends: 0 keys"),
    ("stages a list", at("backends.onnx.stages", []), r"backends\.onnx\.stages"),
    ("a stage without a file", at("backends.onnx.stages.decoder", {}), "'file' is missing"),
    ("a graph outside", at("backends.onnx.stages.connector.file", "../other/connector_fp16.onnx"), "a path inside"),
    ("a graph at an absolute path", at("backends.onnx.stages.connector.file", "/tmp/connector.onnx"), "a path inside"),
    ("a graph of another system", at("backends.onnx.stages.connector.file", "C:/connector.onnx"), "a path inside"),
    ("a graph that is no row", at("backends.onnx.stages.connector.file", "onnx/none.onnx"), "which is no row"),
    ("a graph in another format", at("backends.onnx.stages.connector.file", "config.json"), r"ends in \.onnx"),
    ("processor a path", at("processor", "../os"), "processor"),
    ("processor a number", at("processor", 5), "processor: 5"),
    ("backend a list", at("runtime_backend", ["ort"]), "runtime_backend"),
    ("schema 0", at("schema", 0), "schema: 0"),
    ("schema true", at("schema", True), "names no schema"),
    ("assignments a list", at("assignments", []), "assignments"),
    ("source a text", at("source", "x"), "source"),
    ("facts a text", at("facts", "x"), "facts"),
    ("verification a text", at("verification", "pass"), "verification"),
    *((f"no {key}", without(key), f"'{key}' is missing") for key in ("runtime", "limits", "backends", "family", "files")),
    *(
        (f"library {path}", at("backends.mlc", {"weights": "onnx", "host_library": path, "tvm": "1"}), words)
        for path, words in (
            ("/abs/evil.so", "a path inside"),
            ("../evil.so", "a path inside"),
            ("evil.so", "which is no row"),
        )
    ),
    (
        "weights of another package",
        at("backends.mlc", {"weights": "/other/mlc", "host_library": "config.json", "tvm": "1"}),
        "a path inside",
    ),
    (
        "weights in an empty folder",
        at("backends.mlc", {"weights": "none", "host_library": "config.json", "tvm": "1"}),
        "which is no row",
    ),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in FORGED], ids=[case[0] for case in FORGED])
def test_a_forged_manifest_is_refused_by_every_verb(
    copy: Path, capsys: pytest.CaptureFixture[str], change: Edit, words: str
) -> None:
    edit(copy, change)
    with pytest.raises(PackageError, match=words):
        package.read(copy)
    for verb in (["info"], ["verify"], ["chat", "--prompt", "x"], ["verify", "--verify", "off"]):
        assert main([verb[0], "-p", str(copy), *verb[1:]]) == 7
    printed = capsys.readouterr()
    assert printed.err.count("error:") == 4 and printed.out == "" and "Traceback" not in printed.err


def test_a_path_too_long_for_any_disk(copy: Path) -> None:
    edit(copy, at("files.0.path", "9" * 300))
    with pytest.raises(PackageError, match="missing: 999"):
        package.verify(package.read(copy))


def test_a_library_from_elsewhere_never_runs(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled here: its constructor writes a file when it is loaded."""
    pytest.importorskip("tvm")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "evil.c").write_text(
        "#include <stdio.h>\n"
        '__attribute__((constructor)) static void boom(void) { FILE *f = fopen("%s", "w"); if (f) fclose(f); }\n'
        % (tmp_path / "PWNED")
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(copy / "evil.so"), str(tmp_path / "evil.c")], check=True)
    weights = copy / "mlc"
    weights.mkdir()
    (weights / "tensor-cache.json").write_text(json.dumps({"records": [_shard(0, [])]}))
    (weights / "p.bin").touch()
    block = {"weights": "mlc", "host_library": "evil.so", "tvm": "0.27.0.post1", "decoder_sides": []}
    edit(copy, lambda m: m.update(runtime_backend="mlc", backends={"mlc": block}))
    for verb in (["info"], ["verify"], ["chat", "--prompt", "x"], ["bench"], ["verify", "--verify", "off"]):
        assert main([verb[0], "-p", str(copy), *verb[1:]]) == (0 if verb[0] in ("info", "verify") else 7)
    printed = capsys.readouterr()
    assert "code: evil.so" in printed.out and "brings code" in printed.err and "brings code" in printed.out
    assert not (tmp_path / "PWNED").exists()
    assert main(["chat", "-p", str(copy), "--prompt", "x", "--trust", "sha256:" + "0" * 64]) == 7
    assert not (tmp_path / "PWNED").exists(), "another hash trusts nothing"


def _shard(size: int, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {"dataPath": "p.bin", "format": "raw-shard", "nbytes": size, "records": records}
