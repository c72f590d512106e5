"""What lies beside a package's graphs and weights, held against what an export writes from this checkpoint.

Other tools read these files (an app's engine, transformers, transformers.js, onnxruntime-genai, Triton), and the runtime
reads the manifest: no question that a check asks goes through most of it. Numbers are compared as numbers, text by lines.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from export.checkpoint.opened import OpenedCheckpoint
from export.package.manifest import SCHEMA
from export.package.tokenizer_files import JSON
from export.package.written_again import stated_again, write_again
from export.request import BEYOND_TRAINED
from export.source.side_files import KEPT_TWICE, purpose_of
from export.triton.configuration import PARAMETERS, config_text
from export.triton.layout import CONFIG, of_package
from parity_tests.check.candidate import Candidate
from parity_tests.check.stated_settings import Failed, failed
from parity_tests.reference.checkpoint_side import Checkpoint
from runtime_py.backends.record import Ability
from runtime_py.errors import PackageError
from runtime_py.files.json_file import parse_json, shortened
from runtime_py.package.files import listed
from runtime_py.version import VERSION
from targets.registry import target_named

NAME, MANIFEST = "side files", "manifest"

SHOWN = 6
"""Differences that a note spells out."""

ANSWERED = ("expected_ids", "agree")
"""What a check adds to the self-test's sample: the reference's answer."""

OPEN = re.compile(r"facts|licence|backends(\.[^.]+)?")
"""Objects of the manifest that hold more than follows from the model."""

GONE = object()


def not_compared(candidate: Candidate) -> str:
    """Why nobody can say what an export wrote beside this package's graphs and weights; "" where we can."""
    schema, made_by = candidate.manifest["schema"], candidate.manifest["edgeproof"]
    if schema == SCHEMA and made_by == VERSION:
        return ""
    return f"edgeproof {made_by} wrote them by schema {schema}, and this is {VERSION} with {SCHEMA}"


def other_side_files(candidate: Candidate, checkpoint: Checkpoint) -> Failed | None:
    """Of the files that an export writes from the model and the manifest's choices; None where all are as it writes them."""
    assert checkpoint.opened is not None
    with tempfile.TemporaryDirectory(prefix="edgeproof-side-files-") as scratch:
        folder = Path(scratch)
        paths, whole = write_again(candidate.manifest, checkpoint.opened, candidate.folder, folder)
        names = {path.as_posix() for path in paths} - _renewed(candidate, checkpoint.opened)
        lines = [line for name in sorted(names) for line in _file(name, candidate.folder / name, folder / name)]
        if whole:
            lines += _unknown(listed(candidate.manifest), {path.as_posix() for path in paths})
    lines += _of_server(candidate)
    return _told(candidate, NAME, len(paths), lines)


def other_manifest(candidate: Candidate, checkpoint: Checkpoint) -> Failed | None:
    """Of the manifest's entries that the model decides, and of its limits; None where all are as an export writes them."""
    assert checkpoint.opened is not None
    expected = stated_again(candidate.manifest, checkpoint.opened)
    found = {key: candidate.manifest.get(key, GONE) for key in expected}
    lines = [*_values("manifest.json", found, expected), *_limits(candidate, checkpoint)]
    return _told(candidate, MANIFEST, len(expected), lines)


def _limits(candidate: Candidate, checkpoint: Checkpoint) -> Iterator[str]:
    """A context that was asked for is nowhere but in the manifest, so that only what no export takes is wrong."""
    manifest, limits = candidate.manifest, candidate.limits
    target, positions = target_named(manifest["target"]), checkpoint.spec.decoder.max_positions
    beyond = any(row["name"] == BEYOND_TRAINED for row in manifest.get("waivers") or ())
    if limits.context > positions and not beyond:
        yield f"manifest.json: limits.context is {limits.context}, and the model has {positions} positions"
    if limits.prefill_chunk > limits.context:
        yield f"manifest.json: limits.prefill_chunk is {limits.prefill_chunk}, more than the context of {limits.context}"
    if limits.batch != target.limits.batch and not target.can(Ability.PLANNED_BATCH):
        yield _sentence("manifest.json", "limits.batch", limits.batch, target.limits.batch)


def _renewed(candidate: Candidate, checkpoint: OpenedCheckpoint) -> set[str]:
    """Licences and model cards of this copy of the checkpoint that are not those of the export's: hubs renew them."""
    assert checkpoint.folder is not None
    stated = {row["path"]: row["sha256"] for row in candidate.manifest["source"]["files"]}
    return {
        file.name
        for file in checkpoint.kept_files()
        if file.purpose in KEPT_TWICE
        and stated.get(file.path.as_posix()) != hashlib.sha256((checkpoint.folder / file.path).read_bytes()).hexdigest()
    }


def _file(name: str, found: Path, expected: Path) -> Iterator[str]:
    if not found.is_file():
        yield f"{name} is not there, and an export writes it"
        return
    content, meant = found.read_bytes(), expected.read_bytes()
    if content == meant:
        return
    kind = expected.suffix
    if kind == ".json":
        try:
            own, right = (parse_json(text, Path(name), PackageError, "") for text in (content, meant))
        except PackageError as error:
            yield error.what
            return
        if name.startswith("selftest/") and isinstance(own, dict):
            own = {key: value for key, value in own.items() if key not in ANSWERED}
        yield from _values(name, own, right)
    elif kind == ".onnx":
        if not _same_graph(content, meant):
            yield f"{name} is another graph than an export makes of the package's stages"
    elif kind == ".png":
        if not np.array_equal(_pixels(found), _pixels(expected)):
            yield f"{name} has other pixels than the picture that an export draws"
    else:
        yield from _lines(name, content, meant)


def _same_graph(found: bytes, expected: bytes) -> bool:
    """Whatever the order in which another version of the format's library writes fields."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        own, right = (onnx.load_model_from_string(content) for content in (found, expected))
    except DecodeError:
        return False
    return bool(own == right)


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return np.zeros(0)


def _lines(name: str, found: bytes, expected: bytes) -> Iterator[str]:
    own, right = (text.decode("utf-8", "replace").splitlines() for text in (found, expected))
    for number in range(max(len(own), len(right))):
        said, meant = (lines[number] if number < len(lines) else GONE for lines in (own, right))
        if said != meant:
            yield _sentence(name, f"line {number + 1}", said, meant)
            return
    yield f"{name} has other bytes than an export writes"


def _values(name: str, found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Every field that differs, outermost first; in objects of `OPEN` only those that are expected."""
    if isinstance(found, dict) and isinstance(expected, dict):
        inside = f"{place}." if place else ""
        keys = dict.fromkeys(expected) if OPEN.fullmatch(place) else dict.fromkeys((*expected, *found))
        for key in keys:
            yield from _values(name, found.get(key, GONE), expected.get(key, GONE), f"{inside}{key}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, pair in enumerate(zip(found, expected, strict=True)):
            yield from _values(name, *pair, f"{place}[{number}]")
    elif found != expected or isinstance(found, bool) != isinstance(expected, bool):
        yield _sentence(name, place, found, expected)


def _unknown(names: Iterable[str], written: set[str]) -> Iterator[str]:
    """Files at the top of a package, and settings beside a phone's weights, that no export of this checkpoint writes."""
    folders = {str(PurePosixPath(name).parent) for name in written if name.endswith("tokenizer_config.json")}
    for name in sorted(set(names) - written):
        path = PurePosixPath(name)
        own = name == JSON or purpose_of(path.name) in KEPT_TWICE
        if not own and (str(path.parent) == "." or (str(path.parent) in folders and path.suffix == ".json")):
            yield f"{name} is there, and an export writes no such file"


def _of_server(candidate: Candidate) -> Iterator[str]:
    """config.pbtxt around a package that lies in a Triton repository; its parameters are the operator's."""
    server = target_named(candidate.manifest["target"]).server
    path = of_package(candidate.folder.resolve()).folder / CONFIG
    if server is None or not path.is_file():
        return
    own, right = (
        "\n".join(line for line in text.splitlines() if not line.startswith(PARAMETERS))
        for text in (path.read_text(encoding="utf-8", errors="replace"), config_text(server))
    )
    if own != right:
        yield from _lines(CONFIG, own.encode(), right.encode())


def _sentence(name: str, place: str, found: object, expected: object) -> str:
    if expected is GONE:
        return f"{name}: {place} is {shortened(found)}, and an export writes none"
    if found is GONE:
        return f"{name}: {place} is missing, and an export writes {shortened(expected)}"
    return f"{name}: {place} is {shortened(found)}, and an export writes {shortened(expected)}"


def _told(candidate: Candidate, name: str, of: int, lines: list[str]) -> Failed | None:
    if not lines:
        return None
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return failed(candidate, name, of, len(lines), "; ".join([*lines[:SHOWN], *more]))
