"""The readers of packages and of unfinished exports: manifest, graphs' references, weight index, self-test, journal."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from parity_tests.laboratory.fuzz import mutations
from parity_tests.laboratory.fuzz.subjects import CHECKPOINT_SUBJECTS, JSON, Different, Subject

FINGERPRINT = {"target": "cpu", "context": 64}


@cache
def _package() -> Mapping[str, bytes]:
    """A small package of the processor's, exported once a process."""
    from export.pipeline import export
    from export.request import ExportRequest

    with tempfile.TemporaryDirectory() as place:
        request = ExportRequest("minicpm-v", "cpu", "demo", precision="int4", output=Path(place) / "out", skip_verify=True)
        folder = export(request, None)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def _picked(*names: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, _package()[name]) for name in names)


def _read_manifest(folder: Path, _: str) -> None:
    """As a program that opens a package does, with an answer of one token where it is accepted."""
    from runtime_py import package
    from runtime_py.command.info import describe, lines
    from runtime_py.generation.generate import Overrides
    from runtime_py.model import load

    lines(describe(package.read(folder)))
    with load(folder, verify="size", threads=1) as model:
        model.chat("Hello", overrides=Overrides(max_new_tokens=1))


def _read_sample(folder: Path, _: str) -> None:
    from runtime_py.package.selftest import read_sample

    read_sample(folder)


def _read_graph(folder: Path, name: str) -> None:
    from runtime_py.backends.onnx_files import external_files

    for path in external_files(folder / name):
        if not isinstance(path, str):
            raise Different("a path that is no text")


@cache
def _cache() -> Mapping[str, bytes]:
    with contextlib.suppress(ImportError):
        import tvm  # noqa: F401  # here, so that its own memory counts for no reading
    tensors = [("a", [4, 8], "float16", 64, 0), ("b", [2, 3], "float32", 12, 64), ("c", [5], "uint32", 20, 76)]
    records = [
        {"name": name, "shape": shape, "dtype": dtype, "format": "f32-to-bf16", "nbytes": size, "byteOffset": at}
        for name, shape, dtype, size, at in tensors
    ]
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": 96, "records": records, "md5sum": "0" * 32}
    index = {"metadata": {"ParamSize": 3, "ParamBytes": 96.0, "BitsPerParam": 16.0}, "records": [shard]}
    return {"cache/params_shard_0.bin": bytes(range(96)), "cache/tensor-cache.json": json.dumps(index).encode()}


def _read_cache(folder: Path, _: str) -> None:
    """Our check, then TVM itself on what it accepted: an offset that slipped through ends the process."""
    from runtime_py.backends.tensor_cache import read_tensor_cache
    from runtime_py.package.files import rows_of

    ours = read_tensor_cache(folder, {"files": rows_of(folder)}, "cache")
    with contextlib.suppress(ImportError):
        import tvm

        tvm.get_global_func("vm.builtin.tensor_cache.load")(str(folder / "cache"), 1, 0)
        names = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(sorted(ours))
        shapes = {name: tuple(array.shape) for name, array in zip(sorted(ours), names, strict=True)}
        tvm.get_global_func("vm.builtin.tensor_cache.clear")()
        if shapes != {name: tensor.shape for name, tensor in ours.items()}:
            raise Different("TVM reads other shapes")


@cache
def _journal() -> Mapping[str, bytes]:
    from export.package.journal import Journal

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out.partial"
        folder.mkdir()
        journal = Journal(folder, FINGERPRINT)
        journal.begin()
        for name in ("onnx/a.bin", "b.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(name.encode() * 9)
            journal.finish(f"step {name}", [Path(name)])
        journal.remember_source("model.safetensors", "0" * 64)
        return {
            f"out.partial/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def _read_journal(folder: Path, _: str) -> None:
    from export.package.journal import Journal
    from export.package.ownership import is_unfinished

    (folder / "thesis.txt").write_text("mine")
    is_unfinished(folder / "out.partial")
    try:
        Journal(folder / "out.partial", FINGERPRINT).resume()
    finally:
        if not (folder / "thesis.txt").exists():
            raise Different("a file beside the folder is gone")


PACKAGE_SUBJECTS = (
    Subject("manifest", lambda: _picked("manifest.json"), JSON, _read_manifest, _package),
    Subject("self-test", lambda: _picked("selftest/sample.json"), JSON, _read_sample),
    Subject(
        "graph",
        lambda: _picked(*(name for name in _package() if name.endswith(".onnx"))),
        {".onnx": mutations.protobuf_changed},
        _read_graph,
    ),
    Subject(
        "tensor cache",
        lambda: (("cache/tensor-cache.json", _cache()["cache/tensor-cache.json"]),),
        JSON,
        _read_cache,
        _cache,
    ),
    Subject(
        "journal",
        lambda: (("out.partial/journal.json", _journal()["out.partial/journal.json"]),),
        JSON,
        _read_journal,
        _journal,
    ),
)

SUBJECTS = {subject.name: subject for subject in (*CHECKPOINT_SUBJECTS, *PACKAGE_SUBJECTS)}
"""Every subject by name."""
