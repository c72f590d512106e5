"""A package whose manifest or files were forged is refused before anything of it is opened; one from the hub runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runtime_py
from runtime_py import package
from runtime_py.command.cli import main
from runtime_py.errors import PackageError
from runtime_py.generation.generate import Overrides
from runtime_py.package.files import DOWNLOADED_BESIDE, rows_of

Manifest = dict[str, Any]
Edit = Callable[[Manifest], None]


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def edit(folder: Path, change: Edit) -> None:
    """Change a manifest and make its file hashes true again, as somebody who forges one does."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    kept = [row for row in rows_of(folder) if row["path"] != "manifest.json"]
    value["files"] = kept
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


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
    with pytest.raises(PackageError, match=r"extra: weights\.bin"):
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
