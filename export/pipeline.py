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

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from export.backends.base import Build, Step
from export.backends.registry import backend_named
from export.checkpoint.opened import OpenedCheckpoint, describe_checkpoint, open_checkpoint
from export.command.progress import Progress
from export.package import disk
from export.package.journal import FileRecord, Journal, record_file, sha256_of
from export.package.lock import only_one
from export.package.manifest import (
    MANIFEST,
    ManifestParts,
    assignment_rows,
    copy_side_files,
    file_rows,
    manifest,
    write_manifest,
)
from export.package.ownership import remove_unfinished, stored_manifest
from export.package.selftest import write_answer, write_question
from export.package.source_hashes import SourceHashes, stamp
from export.package.tokenizer_files import write_tokenizer
from export.plan.machine import tool_versions
from export.plan.plan import Plan, make_plan
from export.prompts.chat_template import write_chat_template
from export.prompts.declared import declared_prompt
from export.quantisation.stored import StoredCodes
from export.request import ExportRequest
from export.source.side_files import Purpose, SideFile, named, require_vocabulary
from export.specs import ModelSpec
from export.triton.layout import of_package
from export.triton.repository import check_repository, write_model
from export.verification import Verifier
from runtime_py.errors import InterruptedExportError, MachineError, ParityError, UsageError
from runtime_py.package import parse, read, trust
from runtime_py.version import VERSION

log = logging.getLogger("edgeproof")

VALUES = "values of the checkpoint"

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
    with disk.explained(output), _interruptible(output), _out_of_memory(), only_one(output):
        disk.check_output(output, request.force, request.resume)
        checkpoint = open_checkpoint(request)
        assert checkpoint.folder is not None
        if not request.without_tokenizer:
            require_vocabulary(checkpoint.folder, checkpoint.side_files)
        planned = _plan(request, checkpoint, verifier)
        if request.resume and _finished_before(request, checkpoint, planned):
            return output
        planned.refuse_if_it_does_not_fit()
        for note in planned.notes:
            log.info("note: %s", note)
        stored = _stored_codes(request, checkpoint, planned)
        folder, journal = _workshop(request, checkpoint, planned)
        with SourceHashes(checkpoint.files(), journal) as hashes:
            builds = _builds(checkpoint, planned, stored, folder, progress)
            _run(_steps(checkpoint, planned, builds, folder), journal, progress, hashes)
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
    if checkpoint.weights is None:
        notes.append("made from config.json alone; no weights were read")
    return make_plan(
        request, checkpoint.family, checkpoint.spec, checkpoint.id, request.output_folder(), verifier, tuple(notes)
    )


def _stored_alike(written: Mapping[str, Any], request: ExportRequest, planned: Plan) -> bool:
    """Whether a finished package holds every layer as this request would, calibrated or not, and with its waivers."""
    blocks = written.get("backends", {})
    held = {name: block.get("assignments", written.get("assignments")) for name, block in blocks.items()}
    calibrated = any("calibration" in block for block in blocks.values())
    return (
        held == {name: assignment_rows(part.assignments) for name, part in planned.parts.items()}
        and calibrated == (request.calibration is not None)
        and written.get("waivers") == request.waivers()
    )


def _finished_before(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> bool:
    """Whether there is nothing to resume because the package is whole; what a kill at the very end left is removed.

    Raises:
        UsageError: the package is there, and is another request's.
    """
    output = request.output_folder()
    written = stored_manifest(output)
    journal = Journal(disk.partial_of(output), fingerprint(request, checkpoint, planned))
    if written is None or journal.folder.exists():
        return False
    limits = {key: written.get("limits", {}).get(key) for key in ("context", "prefill_chunk")}
    asked = {"context": planned.options.limits.context, "prefill_chunk": planned.options.limits.prefill_chunk}
    same = (written.get("target"), written.get("precision"), written.get("source", {}).get("id"), limits) == (
        planned.options.target.name, planned.options.precision, checkpoint.id, asked
    )  # fmt: skip
    same = same and _stored_alike(written, request, planned)
    if not journal.finished() and (request.force or not same):
        if request.force:
            return False
        raise disk.exists_already(output)
    disk.clean_up(output, journal)
    _trust(output)
    log.info("%s is finished; nothing is left to do", output)
    return True


def _workshop(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> tuple[Path, Journal]:
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


def _confirmed(hashes: SourceHashes, progress: Progress) -> list[FileRecord]:
    """The checkpoint's hashes, once they were taken again."""
    progress.start("checkpoint hashed again", 1, 1)
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
        "model_described": hashlib.sha256(repr(checkpoint.spec).encode()).hexdigest(),
        "calibration": None if request.calibration is None else sha256_of(request.calibration / MANIFEST),
        "checkpoint": {name: stamp(path) for name, path in checkpoint.files().items()},
        "tools": tool_versions(planned.options.target.backend_names),
        **of_server,
    }


def _stored_codes(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> dict[str, StoredCodes]:
    """The calibrated codes of every backend that has int4 layers, checked against the plan before any work."""
    if request.calibration is None:
        return {}
    assert checkpoint.weights is not None
    quantised = {
        name: part for name, part in planned.parts.items() if any(a.storage == "int4" for a in part.assignments.values())
    }
    return {
        name: StoredCodes(request.calibration, name, checkpoint.weights, part.assignments)
        for name, part in quantised.items()
    }


def _builds(
    checkpoint: OpenedCheckpoint, planned: Plan, stored: Mapping[str, StoredCodes], folder: Path, progress: Progress
) -> dict[str, Build]:
    """What each backend's steps read."""
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS

    assert checkpoint.folder is not None and checkpoint.weights is not None
    weights, processor = checkpoint.weights, checkpoint.family.make_processor(checkpoint.spec)
    return {
        name: Build(
            spec=checkpoint.spec,
            options=planned.options,
            assignments=part.assignments,
            weights=stored[name].weights if name in stored else weights,
            codes=stored.get(name) or RoundToNearest(weights, part.assignments, GRIDS),
            checkpoint=checkpoint,
            folder=folder,
            progress=progress,
            processor=processor,
        )
        for name, part in planned.parts.items()
    }


def _target_files(backend: str, build: Build) -> list[Step]:
    """What a backend adds for the target's own software, where it adds anything."""
    write = backend_named(backend).target_files.get(build.options.target.name)
    return [] if write is None else [Step(f"{backend} files of the target", partial(write, build))]


def _steps(checkpoint: OpenedCheckpoint, planned: Plan, builds: dict[str, Build], folder: Path) -> list[Step]:
    """All work in order; step names are unique."""
    source, prompt = checkpoint.folder, declared_prompt(checkpoint.spec)
    assert source is not None
    tokens, kept = checkpoint.tokenizer_folder(), checkpoint.side_files
    steps = [Step(VALUES, partial(_look_at_values, checkpoint, planned, builds))]
    if tokens is not None:
        steps.append(Step("tokenizer", partial(write_tokenizer, tokens, folder)))
        kept = tuple(file for file in kept if file.purpose not in (Purpose.VOCABULARY, Purpose.TOKENS))
    steps += [
        Step(step.name if step.name.startswith(name) else f"{name} {step.name}", step.run)
        for name, build in builds.items()
        for step in (*planned.parts[name].backend.steps(build), *_target_files(name, build))
    ]
    steps.append(Step("side files", lambda: _side_files(kept, source, planned, builds, folder)))
    steps.append(Step("chat template", lambda: write_chat_template(prompt, folder)))
    steps.append(Step("self-test sample", lambda: write_question(folder)))
    return steps


def _side_files(
    kept: Sequence[SideFile], source: Path, planned: Plan, builds: Mapping[str, Build], folder: Path
) -> list[Path]:
    """Copy the checkpoint's side files, then write what the backends put over and beside them; every path once."""
    written = copy_side_files(kept, source, folder)
    for name, build in builds.items():
        written += planned.parts[name].backend.tool_files(build)
    return list(dict.fromkeys(written))


def _look_at_values(checkpoint: OpenedCheckpoint, planned: Plan, builds: Mapping[str, Build]) -> list[Path]:
    """Refuse a checkpoint with values that no file of the package can hold; makes no file."""
    from export.quantisation.float16 import rounded_to_float16
    from export.source.value_check import check_values

    assert checkpoint.weights is not None
    names = {name for part in planned.parts.values() for name in rounded_to_float16(part.assignments)}
    build = next(iter(builds.values()))
    check_values(checkpoint.weights, names & set(checkpoint.weights.rules), partial(build.progress, VALUES))
    return []


def _run(steps: list[Step], journal: Journal, progress: Progress, hashes: SourceHashes) -> None:
    """Run the steps that the journal does not hold, and enter each when its files and the checkpoint's hashes are there."""
    for number, step in enumerate(steps, 1):
        if step.name in journal.steps:
            continue
        progress.start(step.name, number, len(steps))
        try:
            written = step.run()
            hashes.records()
            journal.finish(step.name, written)
        except BaseException:
            progress.abandon()
            raise
        progress.stop(sum(record.bytes for record in journal.steps[step.name]))


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


@contextmanager
def _interruptible(output: Path) -> Iterator[None]:
    """Turn Ctrl-C (and what the command line raises for SIGTERM) into the error that names --resume."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        partial = disk.partial_of(output)
        where = f"what is finished is kept in {partial}" if partial.exists() else "nothing was written yet"
        raise InterruptedExportError(
            "the export was stopped", f"it to run to its end; {where}", "run the same command again with --resume"
        ) from interrupt


@contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise MachineError(
            "this machine ran out of memory", "as much as the plan says (--dry-run)", "free some and run with --resume"
        ) from error
