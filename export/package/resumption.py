"""What an earlier run of an export left: a finished package, a partial one whose steps are kept, or nothing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.checkpoint.opened import OpenedCheckpoint
from export.package import disk
from export.package.journal import Journal, sha256_of
from export.package.manifest import MANIFEST, assignment_rows
from export.package.ownership import remove_unfinished, stored_manifest
from export.package.source_hashes import YOUNG, stamp
from export.plan.machine import tool_versions
from export.plan.plan import Plan
from export.quantisation.stored import DIGEST, digest_of
from export.request import ExportRequest
from runtime_py.version import VERSION

log = logging.getLogger("edgeproof")


def fingerprint(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> dict[str, Any]:
    """Everything that decides the bytes of the package."""
    limits, capability = planned.options.limits, planned.options.compute_capability
    of_server = {"compute_capability": capability} if capability and planned.options.target.server is not None else {}
    return {
        "edgeproof": VERSION,
        "model": checkpoint.id,
        "revision": checkpoint.revision,
        "target": planned.options.target.name,
        "precision": planned.options.precision,
        "context": limits.context,
        "prefill_chunk": limits.prefill_chunk,
        "options": dict(planned.options.extra),
        **({"batch": limits.batch} if limits.batch > 1 else {}),
        "model_described": hashlib.sha256(repr(checkpoint.spec).encode()).hexdigest(),
        "calibration": None if request.calibration is None else digest_of(request.calibration),
        "checkpoint": {name: stamp(path) for name, path in checkpoint.files().items()},
        "tools": tool_versions(planned.options.target.backend_names),
        **of_server,
        **({} if request.choice is None else {"choice": sha256_of(request.choice)}),
    }


def workshop(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> tuple[Path, Journal]:
    """The partial package and its journal: new, or as an earlier run of the same export left it."""
    folder = disk.partial_of(request.output_folder())
    journal = Journal(folder, fingerprint(request, checkpoint, planned))
    if folder.exists() and not request.resume:
        remove_unfinished(folder)
    if folder.exists():
        kept = journal.resume()
        log.info("resuming %s: %d finished step(s) kept", folder, len(kept))
    else:
        folder.mkdir(parents=True)
        journal.begin()
    return folder, journal


def finished_before(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> bool:
    """Whether there is nothing to resume because the package is whole; what a kill at the very end left is removed.

    Raises:
        UsageError: the package is there, and is another request's.
    """
    output = request.output_folder()
    written = stored_manifest(output)
    journal = Journal(disk.partial_of(output), fingerprint(request, checkpoint, planned))
    if written is None or journal.folder.exists():
        return False
    if not journal.finished():
        if request.force:
            return False
        if not _asked_for(written, request, checkpoint, planned, (output / MANIFEST).stat().st_mtime_ns):
            raise disk.exists_already(output)
    disk.clean_up(output, journal)
    log.info("%s is finished; nothing is left to do", output)
    return True


def _asked_for(
    written: Mapping[str, Any], request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan, since: int
) -> bool:
    """Whether a finished package is what this request makes.

    Args:
        since: when its manifest was written, nanoseconds.
    """
    limits, wanted = written.get("limits", {}), planned.options.limits
    limits = {"batch": 1} | {key: limits[key] for key in ("context", "prefill_chunk", "batch") if key in limits}
    asked = {"context": wanted.context, "prefill_chunk": wanted.prefill_chunk, "batch": wanted.batch}
    source, options = written.get("source", {}), planned.options
    made = (written.get("target"), written.get("precision"), source.get("id"), source.get("revision"), limits)
    return (
        made == (options.target.name, options.precision, checkpoint.id, checkpoint.revision, asked)
        and _held_alike(written, request, checkpoint, planned)
        and _of_these_files(source, checkpoint, since)
    )


def _of_these_files(source: Mapping[str, Any], checkpoint: OpenedCheckpoint, since: int) -> bool:
    """Whether the checkpoint has the files that the manifest's ``source`` names; those written ``since`` are hashed."""
    made_of, found = {row["path"]: row for row in source.get("files", ())}, checkpoint.files()
    return made_of.keys() == found.keys() and all(
        path.stat().st_size == made_of[name]["bytes"]
        and (path.stat().st_mtime_ns < since - YOUNG or sha256_of(path) == made_of[name]["sha256"])
        for name, path in found.items()
    )


def _held_alike(written: Mapping[str, Any], request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> bool:
    """Whether a finished package holds every layer as this request would, of the same calibration, and with its waivers."""
    blocks = written.get("backends", {})
    held = {name: block.get("assignments", written.get("assignments")) for name, block in blocks.items()}
    # a backend whose files are left to another machine has no block
    wanted = {name: assignment_rows(part.assignments) for name, part in planned.parts.items() if name in held}
    made_of = {block["calibration"].get(DIGEST) for block in blocks.values() if "calibration" in block}
    given = set() if request.calibration is None else {digest_of(request.calibration)}
    return (
        planned.options.target.runs.name in held
        and held == wanted
        and all(planned.parts[name].backend.made_so(checkpoint.spec, planned.options, blocks[name]) for name in held)
        and made_of == given
        and written.get("waivers") == request.waivers()
    )
