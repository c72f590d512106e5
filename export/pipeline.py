"""From a request to a package under its name: the whole way through, in order.

1. refuse an output that cannot be written
2. find the checkpoint, recognise its family, check every tensor
3. plan: what every layer becomes, what it costs; refuse what does not fit
4. build: each backend's steps, journalled, so that a killed export resumes
5. side files and the self-test sample
6. the manifest, with the hashes of everything
7. check the package against the reference
8. give it its name, and, for a server, make it a model that Triton loads
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NoReturn

from export.backends.base import Build
from export.checkpoint.opened import OpenedCheckpoint, describe_checkpoint, open_checkpoint
from export.command.progress import Progress
from export.families.names import find
from export.package import disk
from export.package.interruption import interruptible, out_of_memory
from export.package.journal import FileRecord, Journal, record_file
from export.package.lock import only_one
from export.package.manifest import (
    MANIFEST,
    ManifestParts,
    assignment_rows,
    file_rows,
    manifest,
    write_manifest,
)
from export.package.resumption import finished_before, workshop
from export.package.selftest import write_answer
from export.package.source_hashes import SourceHashes
from export.package.steps import begun, builds_of, run, steps_of, stored_codes
from export.plan.least_context import refuse_small_context
from export.plan.machine import tool_versions
from export.plan.plan import Plan, make_plan
from export.quantisation.choice import measured_elsewhere, told_of
from export.quantisation.stored import StoredCodes
from export.request import ExportRequest
from export.source.advice import published_rounded, rounded_before
from export.source.side_files import Purpose, named, require_vocabulary
from export.specs import ModelSpec
from export.triton.layout import of_package
from export.triton.repository import check_repository, write_model
from export.verification import Verifier
from runtime_py.errors import ParityError, UsageError
from runtime_py.package import parse, read, trust
from runtime_py.version import VERSION

log = logging.getLogger("edgeproof")

CHECK_SKIPPED = {"verdict": "not run", "reason": "left out by the waiver skip-verify", "probes": []}


def plan(request: ExportRequest, verifier: Verifier | None) -> Plan:
    """The plan of an export from config.json alone; the checkpoint's weights need not be here.

    Args:
        verifier: what will check the package, for the memory it takes; None leaves that out of the plan.
    """
    return _plan(request, describe_checkpoint(request), verifier)


def export(request: ExportRequest, verifier: Verifier | None, progress: Progress | None = None) -> Path:
    """Carry out a request; returns the package folder.

    Args:
        verifier: checks the finished package against its reference; None where the request leaves the check out.

    Raises:
        UsageError: there is no verifier, and the request does not waive the check.
        EdgeproofError: a subclass for everything a person can act on; nothing lies under the package's name then.
    """
    if verifier is None and not request.skip_verify:
        raise UsageError("nothing was given to check the package with", "a verifier, or skip_verify", "hand one in")
    output, target = request.output_folder(), request.target_record()
    if target.server is not None:
        check_repository(of_package(output).repository)
    folder = _package(request, verifier, progress or Progress(quiet=True))
    if target.server is not None:
        with disk.explained(folder):
            write_model(folder, target)
    return folder


def _package(request: ExportRequest, verifier: Verifier | None, progress: Progress) -> Path:
    output = request.output_folder()
    disk.check_place(output)
    with disk.explained(output), interruptible(output), out_of_memory(), only_one(output):
        disk.check_output(output, request.force, request.resume)
        checkpoint = open_checkpoint(request)
        assert checkpoint.folder is not None
        if not request.without_tokenizer:
            require_vocabulary(checkpoint.folder, checkpoint.side_files)
        planned = _plan(request, checkpoint, verifier)
        if request.resume and finished_before(request, checkpoint, planned):
            _trust(output)
            return output
        planned.refuse_if_it_does_not_fit()
        for note in planned.notes:
            log.info("note: %s", note)
        stored = stored_codes(request, checkpoint, planned)
        folder, journal = workshop(request, checkpoint, planned)
        builds = builds_of(checkpoint, planned, stored, folder, progress)
        steps = steps_of(checkpoint, planned, builds, folder)
        with begun(steps, journal), SourceHashes(checkpoint.files(), journal) as hashes:
            run(steps, journal, progress, hashes)
            value = _manifest(checkpoint, planned, builds, journal, _confirmed(hashes, progress))
        parse(folder, value)
        write_manifest(folder, value)
        journal.set_aside()
        value["verification"] = _check(verifier, request, checkpoint, folder, progress)
        value["files"] = _with_answer(verifier, folder, value, planned.spec)
        write_manifest(folder, value)
        if value["verification"]["verdict"] == "fail":
            _refuse_failed(disk.keep_failed(folder, output, journal), value["verification"])
        disk.promote(folder, output, journal)
        _trust(output)
    return output


def _plan(request: ExportRequest, checkpoint: OpenedCheckpoint, verifier: Verifier | None) -> Plan:
    notes = list(checkpoint.check_tokenizer())
    refuse_small_context(request, checkpoint, verifier)
    if checkpoint.weights is None:
        notes.append("made from config.json alone; no weights were read")
        known = find(checkpoint.id)
        notes += published_rounded("" if known is None else known.quantised)
    else:
        notes += rounded_before(checkpoint.weights.source.infos.values())
    if request.choice is not None:
        notes += measured_elsewhere(request.choice, checkpoint.id)
    return make_plan(
        request, checkpoint.family, checkpoint.spec, checkpoint.id, request.output_folder(), verifier, tuple(notes)
    )


def _confirmed(hashes: SourceHashes, progress: Progress) -> list[FileRecord]:
    """The checkpoint's hashes, once it is sure that nothing wrote to it."""
    progress.start("checkpoint unchanged", 1, 1)
    try:
        return hashes.confirmed()
    finally:
        progress.stop(0)


def _trust(output: Path) -> None:
    """Enter the package in the user's trust file: its code was made here."""
    try:
        trust.remember(read(output))
    except OSError as error:
        log.debug("%s is not in the trust file: %s", output, error)


def _manifest(
    checkpoint: OpenedCheckpoint, planned: Plan, builds: dict[str, Build], journal: Journal, source: list[FileRecord]
) -> dict[str, Any]:
    target = planned.options.target
    shown = planned.parts[target.runs.name].assignments
    blocks = {}
    for name, part in planned.parts.items():
        block = part.backend.manifest(builds[name])
        if not block:
            continue
        blocks[name] = block
        if part.assignments != shown:
            blocks[name].setdefault("assignments", assignment_rows(part.assignments))
        codes = builds[name].codes
        if isinstance(codes, StoredCodes):
            blocks[name]["calibration"] = codes.summary()
        if planned.request.choice is not None:
            blocks[name]["choice"] = told_of(planned.request.choice, name)
    parts = ManifestParts(
        version=VERSION,
        spec=checkpoint.spec,
        processor=checkpoint.family.processor,
        target=target,
        precision=planned.options.precision,
        limits=planned.options.limits,
        backends=blocks,
        assignments=shown,
        files=journal.files(),
        source_id=checkpoint.id,
        source_revision=checkpoint.revision,
        source_files=source,
        tools=tool_versions(target.backend_names),
        licence=checkpoint.family.licence,
        licence_files=[file.name for file in named(checkpoint.side_files, Purpose.LICENCE)],
        waivers=planned.request.waivers(),
        verification={"verdict": "not run", "reason": "the check has not run yet", "probes": []},
    )
    return manifest(parts)


def _check(
    verifier: Verifier | None, request: ExportRequest, checkpoint: OpenedCheckpoint, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Compare the package with the reference, unless the user waived it by name."""
    if verifier is None or request.skip_verify:
        return dict(CHECK_SKIPPED)
    progress.start("check against the reference", 1, 1)
    try:
        return verifier.check(folder, checkpoint, request.calibration)
    finally:
        progress.stop(0)


def _with_answer(verifier: Verifier | None, folder: Path, value: dict[str, Any], spec: ModelSpec) -> list[dict[str, Any]]:
    """The manifest's file rows after the self-test sample got the reference's answer."""
    if verifier is None:
        return list(value["files"])
    stops = value["generation"]["stop_ids"]
    written = write_answer(folder, value["verification"], stops, lambda: verifier.equal_tokens(folder, spec))
    renewed = {row["path"]: row for row in file_rows(record_file(folder, path) for path in written)}
    return [renewed.get(row["path"], row) for row in value["files"]]


def _refuse_failed(kept: Path, verification: dict[str, Any]) -> NoReturn:
    """Say that a package failed its check, and where it is kept."""
    first = verification.get("first_failure")
    raise ParityError(
        f"the package does not say what the reference says; first failure: {first}",
        "every probe within its threshold; the probes are in manifest.json under verification",
        f"look at {kept / MANIFEST}, where the package is kept, and run `python -m parity_tests --package {kept}`",
    )
