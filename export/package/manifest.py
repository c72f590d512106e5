"""The parts of a package that no backend makes: side files, licence, and the manifest that lists everything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export.package.aside import written_aside
from export.package.carried_settings import PURPOSES, carried
from export.package.journal import FileRecord, write_json
from export.quantisation.spec import Assignment, Storage
from export.source.side_files import SideFile
from export.specs import ModelSpec
from export.stages import contracts
from targets.base import Limits, Target

SCHEMA = 2
MANIFEST = "manifest.json"

SERVED_UPRIGHT = True
"""Whether a server or a page turns photographs as EXIF says where its user does not choose. A camera's user expects it; the
published code does not do it, so that ``chat`` and the parity tests do it only when asked."""


def copy_side_files(files: Sequence[SideFile], checkpoint: Path, folder: Path) -> list[Path]:
    """Copy side files of a checkpoint folder into a package folder; returns their paths in it.

    All are copied whole but settings that name code (`export.package.carried_settings`).
    """
    for file in files:
        source = checkpoint / file.path
        with written_aside(folder / file.name) as aside:
            if file.purpose in PURPOSES:
                aside.write_bytes(carried(source.read_bytes(), source))
            else:
                shutil.copyfile(source, aside)
    return [Path(file.name) for file in files]


@dataclass(frozen=True)
class ManifestParts:
    """Everything the manifest says, gathered; `write_manifest` puts it in order.

    Attributes:
        backends: backend name to its own block.
        assignments: layer name to what it became, of the backend that the target runs.
        files: every file of the package but the manifest.
        source_files: the checkpoint's files.
    """

    version: str
    spec: ModelSpec
    processor: str
    target: Target
    precision: str
    limits: Limits
    backends: Mapping[str, Any]
    assignments: Mapping[str, Assignment]
    files: Sequence[FileRecord]
    source_id: str
    source_revision: str | None
    source_files: Sequence[FileRecord]
    tools: Mapping[str, str]
    licence: str
    licence_files: Sequence[str]
    waivers: Sequence[Mapping[str, str]]
    verification: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def manifest(parts: ManifestParts) -> dict[str, Any]:
    """The manifest, keys in the order of docs/package_format.md."""
    spec, limits = parts.spec, parts.limits
    return {
        "schema": SCHEMA,
        "edgeproof": parts.version,
        "family": spec.family,
        "variant": spec.variant,
        "target": parts.target.name,
        "precision": parts.precision,
        "runtime_backend": parts.target.runs.runtime_name,
        "processor": parts.processor,
        "runtime": spec.runtime,
        "pictures": {"upright": SERVED_UPRIGHT},
        "generation": spec.generation,
        "limits": {"context": limits.context, "prefill_chunk": limits.prefill_chunk, "batch": limits.batch},
        "contracts": {stage: contract.to_json() for stage, contract in contracts(spec).items()},
        "backends": dict(parts.backends),
        "assignments": assignment_rows(parts.assignments),
        "files": file_rows(parts.files),
        "source": {"id": parts.source_id, "revision": parts.source_revision, "files": file_rows(parts.source_files)},
        "tools": dict(sorted(parts.tools.items())),
        "licence": {"name": parts.licence, "files": list(parts.licence_files)},
        "waivers": [dict(waiver) for waiver in parts.waivers],
        "verification": dict(parts.verification),
        "facts": {**spec.facts, **parts.facts},
    }


def assignment_rows(assignments: Mapping[str, Assignment]) -> dict[str, dict[str, str]]:
    """Assignments as the manifest writes them."""
    return {
        name: {"storage": str(a.storage), "grid": a.grid, "reason": a.reason} | ({"shares": a.shares} if a.shares else {})
        for name, a in assignments.items()
    }


def assignments_of(spec: ModelSpec, rows: Mapping[str, Mapping[str, str]]) -> dict[str, Assignment]:
    """`assignment_rows` as records again; of layers that the model does not have, none."""
    from export.modules.build import layer_shapes

    layers = {layer.name: layer for layer in layer_shapes(spec)}
    return {
        name: Assignment(layers[name], Storage(row["storage"]), row["grid"], row.get("reason", ""), row.get("shares", ""))
        for name, row in rows.items()
        if name in layers
    }


def file_rows(records: Iterable[FileRecord]) -> list[dict[str, Any]]:
    """File records as the manifest writes them, by path."""
    return [asdict(record) for record in sorted(records, key=lambda record: record.path)]


def write_manifest(folder: Path, value: Mapping[str, Any]) -> Path:
    """Write manifest.json of a package through a temporary name."""
    path = folder / MANIFEST
    write_json(path, value)
    return path


def relative_name(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder`` with ``/``; for a file elsewhere its own folder's name and its name, never more."""
    relative = os.path.relpath(path, folder)
    return f"{path.parent.name}/{path.name}" if relative.startswith("..") else Path(relative).as_posix()
