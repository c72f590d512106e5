"""Which files beside itself an ONNX graph reads: external tensors, and contexts of execution providers.

ONNX Runtime opens them by the paths that the graph holds, so a package's graph may name only files that its manifest
lists. Source of the field numbers: onnx/onnx, onnx/onnx.proto; of the contexts: microsoft/onnxruntime,
docs/execution-providers/EP-Context-Design.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime_py.backends.records import MANY_ROWS, ONNX
from runtime_py.errors import PackageError
from runtime_py.files.json_file import shortened
from runtime_py.files.protobuf import fields, message_of
from runtime_py.package.files import listed, listed_file

MAX_DEPTH = 64

MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR = "model", "graph", "node", "attribute", "tensor"
SPARSE, FUNCTION, TRAINING, ENTRY = "sparse", "function", "training", "entry"
INSIDE: dict[str, dict[int, str]] = {
    MODEL: {7: GRAPH, 20: TRAINING, 25: FUNCTION},
    TRAINING: {1: GRAPH, 2: GRAPH},
    FUNCTION: {7: NODE, 11: ATTRIBUTE},
    GRAPH: {1: NODE, 5: TENSOR, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}
"""Message to those of its fields that can lead to a path, and the message that each holds."""

CONTEXT = "ep_cache_context"
"""Attribute of an EPContext node: compiled code, or the path of a file with it."""


NODE_TYPE = 4
"""Field of a node that names its operator."""

ENDLESS = (b"Loop", b"Scan")
"""Operators that may go round for ever; no graph of an export has one."""


def external_files(graph: Path) -> list[str]:
    """Paths relative to the graph's folder as the graph writes them, each once, by name.

    Raises:
        PackageError: it is no ONNX graph, it carries a compiled context, which is code, or an operator that may not end.
    """
    try:
        with graph.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return sorted(set(_locations(content, MODEL, 0)))
    except (OSError, ValueError) as error:  # ValueError: nothing to map, no message, or a path that is no text
        raise PackageError(f"{graph} is no ONNX graph: {error}", "a graph as export wrote it", "copy it again") from error


def stage_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Stage to its graph's path in the package, and `MANY_ROWS` to that of the second decoder where there is one.

    Raises:
        PackageError: there are none; or one is no row of the manifest's files, or reads a file that is none.
    """
    block = ONNX.block(manifest)
    stages = block.get("stages")
    if not stages:
        raise PackageError(
            f"{folder} names no ONNX graphs", "backends.onnx.stages in manifest.json", "choose another backend"
        )
    rows = listed(manifest)
    files = {stage: entry["file"] for stage, entry in stages.items()}
    if MANY_ROWS in block:
        files[MANY_ROWS] = block[MANY_ROWS]["file"]
    for file in files.values():
        strange = unlisted(listed_file(folder, manifest, file), file, rows)
        if strange:
            raise PackageError(
                f"{folder}: {file} reads {shortened(strange[0])}, which is no row of the manifest's files",
                "every file that is used to be hashed in the manifest",
                "do not use this package; it was altered",
            )
    return files


def unlisted(graph: Path, inside: str, listed: set[str]) -> list[str]:
    """The external files of a graph that are not rows of a manifest.

    Args:
        inside: the graph's own path in its package, whose folder its references are relative to.
        listed: paths of all rows.
    """
    folder = inside.rpartition("/")[0]
    return [name for name in external_files(graph) if (f"{folder}/{name}" if folder else name) not in listed]


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise ValueError(f"graphs inside one another more than {MAX_DEPTH} deep")
    inner = INSIDE[kind]
    for number, value in fields(message):
        if kind == ATTRIBUTE and number == 1 and bytes(message_of(value)) == CONTEXT.encode():
            raise ValueError("it holds code compiled for a device (EPContext)")
        if kind == NODE and number == NODE_TYPE and bytes(message_of(value)) in ENDLESS:
            raise ValueError(f"it holds a {bytes(message_of(value)).decode()}, which may not end")
        if number not in inner:
            continue
        if inner[number] == ENTRY:
            yield from _location(message_of(value))
        else:
            yield from _locations(message_of(value), inner[number], depth + 1)


def _location(entry: memoryview) -> Iterator[str]:
    """The value of an entry of external_data whose key is ``location``."""
    key, text = b"", b""
    for number, value in fields(entry):
        if number == 1:
            key = bytes(message_of(value))
        elif number == 2:
            text = bytes(message_of(value))
    if key == b"location":
        yield text.decode("utf-8")
    elif key not in (b"offset", b"length", b"checksum", b"basepath"):
        raise ValueError(f"external data with {shortened(key)}")
