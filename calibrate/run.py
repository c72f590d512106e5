"""From a request to a folder of codes: shapes first, then samples, then block by block, resumable at every block."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import BlockwiseCalibration, wanted_layers
from calibrate.evaluation.evaluate_samples import SampleEvaluation, judge_of
from calibrate.evaluation.held_out import HeldOutCheck, count_of
from calibrate.methods import method_named
from calibrate.record import fingerprint, manifest
from calibrate.request import CalibrationRequest
from calibrate.samples.prompts import prompts_of
from calibrate.statistics.capture import stream
from calibrate.statistics.forecast import Load, Progress, of_machine, told
from calibrate.statistics.passes import Passes
from calibrate.statistics.stage_stream import block_of
from calibrate.tuning.scale_tuning import tuned_scales
from calibrate.tuning.tuned_blocks import FOLDER as TUNED
from calibrate.tuning.tuned_blocks import replaced, tune_blocks
from calibrate.tuning.tuning_memory import check_memory
from export.backends.registry import backend_named
from export.package import disk
from export.package.journal import FileRecord, Journal, write_json
from export.package.lock import only_one
from export.package.ownership import remove_unfinished, stored_manifest
from export.quantisation.choice import measured_elsewhere, storages_of, widened
from export.quantisation.spec import Assignment
from export.quantisation.stored import CACHE, MANIFEST
from runtime_py.errors import InterruptedExportError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from calibrate.samples.data import Prompt
    from calibrate.statistics.block_run import BlockRun
    from calibrate.statistics.moments import Moment
    from calibrate.statistics.stage_stream import Visit
    from export.backends.base import BuildOptions
    from export.checkpoint.opened import OpenedCheckpoint
    from export.modules.cache_kernels import WatchingKernels
    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec
    from runtime_py.preprocess.base import Processor

log = logging.getLogger("edgeproof")


@dataclass(frozen=True)
class CalibrationPlan:
    """What would be calibrated.

    Attributes:
        options: of the export that will use the codes.
        assignments: backend name to every layer's assignment.
        wanted: backend name to the layers whose codes are chosen.
        notes: what the user should know of the request.
    """

    checkpoint: OpenedCheckpoint
    options: BuildOptions
    assignments: Mapping[str, Mapping[str, Assignment]]
    wanted: Mapping[str, Sequence[str]]
    notes: Sequence[str] = ()

    def blocks(self, backend: str) -> int:
        """Of how many blocks, each a file, the wanted layers are."""
        return len({block_of(layer) for layer in self.wanted[backend]})


def plan(request: CalibrationRequest, opened: OpenedCheckpoint | None = None) -> CalibrationPlan:
    """Every layer's shape against its grid, before anything is computed.

    Args:
        opened: the checkpoint, where it is open already.

    Raises:
        UsageError: this target and precision have no int4 layer, or the export refuses the options.
        UnsupportedModelError: a backend cannot hold the model, not even without a phone's library.
    """
    from export.backends.base import BuildOptions
    from export.checkpoint.opened import open_checkpoint
    from export.plan.plan import picture_rows

    asked = request.export()
    checkpoint = opened or open_checkpoint(asked)
    target = asked.target_record()
    limits = asked.limits(checkpoint.spec.decoder.max_positions, picture_rows(target, checkpoint.spec))
    options = BuildOptions(target, asked.precision_name(), limits, asked.backend_options())
    exporters = {name: backend_named(name).exporter() for name in target.backend_names}
    for exporter in exporters.values():
        exporter.refuse(checkpoint.spec, replace(options, extra={**options.extra, "host_only": target.phone}))
    assignments = {name: exporter.assignments(checkpoint.spec, options) for name, exporter in exporters.items()}
    notes: Sequence[str] = ()
    if request.choice is not None:
        notes = measured_elsewhere(request.choice, checkpoint.id)
        storages = storages_of(request.choice, target.backend_names)
        assignments = {name: widened(name, assignment, storages.get(name, {})) for name, assignment in assignments.items()}
    asked_for = assignments if request.backend is None else [request.backend]
    wanted = {name: wanted_layers(assignment) for name, assignment in assignments.items() if name in asked_for}
    if not any(wanted.values()):
        raise UsageError(
            f"--precision {options.precision} for {target.name} has no int4 layer",
            "a precision that stores integers of 4 bits",
            "choose --precision int4; other precisions need no calibration",
        )
    wanted = {name: layers for name, layers in wanted.items() if layers}
    return CalibrationPlan(checkpoint, options, assignments, wanted, notes)


def calibrate(request: CalibrationRequest, opened: OpenedCheckpoint | None = None) -> Path:
    """Carry a request out; returns the folder, which gets its name when it is whole.

    Args:
        opened: the checkpoint, where it is open already.

    Raises:
        EdgeproofError: a subclass for everything a person can act on.
    """
    disk.check_place(request.output)
    with disk.explained(request.output), only_one(request.output):
        disk.check_output(request.output, request.force, request.resume)
        try:
            return _calibrate(request, plan(request, opened))
        except KeyboardInterrupt as interrupt:
            raise InterruptedExportError(
                "the calibration was stopped", "it to run to its end", "run the same command again with --resume"
            ) from interrupt


def _calibrate(request: CalibrationRequest, planned: CalibrationPlan) -> Path:
    checkpoint = planned.checkpoint
    assert checkpoint.weights is not None and checkpoint.folder is not None
    from export.modules.cache_kernels import WatchingKernels

    for note in planned.notes:
        log.info("note: %s", note)
    processor, prompts = prompts_of(request, checkpoint)
    count = count_of(request.held_out, checkpoint.spec)
    judge = judge_of(request, checkpoint, count) if count else None
    if request.tune_scales:
        for name in planned.wanted:
            check_memory(checkpoint.spec, planned.assignments[name], prompts)
    folder = disk.partial_of(request.output)
    apart = judge.prompts if isinstance(judge, SampleEvaluation) else ()
    journal = Journal(folder, fingerprint(request, checkpoint, prompts, apart))
    if _finished_before(request, journal):
        return request.output
    _begin(request, journal)
    blocks: dict[str, Any] = {}
    for name, assignments in planned.assignments.items():
        if name not in planned.wanted:
            continue
        began, exporter = time.perf_counter(), backend_named(name).exporter()
        work = BlockwiseCalibration(
            checkpoint.spec, checkpoint.weights, assignments, method_named(request.method), request.sequential,
            journal, name,
        )  # fmt: skip
        watching = WatchingKernels() if exporter.wants_cache_scales(planned.options) else None
        load = Load.of(checkpoint.spec, prompts)
        expected = of_machine(checkpoint.spec, assignments, planned.wanted[name], load, work.half)
        if expected.long:
            log.info("%s: %s", name, told(expected, load, work.method.longer))
        visit, passes = _accompanied(work, watching, Progress(name, expected))
        stream(checkpoint.spec, work.weights, prompts, processor, work.wanted, visit, kernels=watching, passes=passes)
        log.info("%s: %d layers in %.1f s", name, len(work.report()), time.perf_counter() - began)
        tuning, check = None, None
        if request.tune_scales:
            tune = partial(
                tuned_scales, checkpoint.spec, checkpoint.weights, work.state, prompts, processor, request.tune_scales
            )
            tuning = tune_blocks(work, tune)
        if judge is not None:
            check = HeldOutCheck(judge, checkpoint.weights, assignments, work.state.files, journal, name).run()
        blocks[name] = _backend_block(work.report(), tuning, check)
        if watching is not None:
            # what the samples saw block by block is the finished model, unless something has changed since
            same = request.sequential and tuning is None and not (check and check["rounded_blocks"])
            sizes = watching.sizes if same else None
            blocks[name][CACHE] = _cache_scales(work, sizes, checkpoint.spec, prompts, processor)
    files = _kept_files(journal, blocks)
    write_json(folder / MANIFEST, manifest(request, checkpoint, prompts, blocks, files))
    for record in journal.files():
        if record not in files:
            (folder / record.path).unlink()
            _remove_empty((folder / record.path).parent)
    journal.set_aside()
    disk.promote(folder, request.output, journal)
    return request.output


def _accompanied(work: BlockwiseCalibration, watching: WatchingKernels | None, progress: Progress) -> tuple[Visit, Passes]:
    """A calibration's visit and passes, with what is left said after each block, and its keys and values taken down anew."""

    def visited(block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> WeightProvider | None:
        weights = work.visit(block, moments, run)
        if watching is not None:
            # until now they were those of the weights before they had codes
            watching.forget(block)
        progress.passed(block)
        return weights

    def settled(block: str, layers: Sequence[str]) -> bool:
        known = work.settled(block, layers)
        if known:
            progress.passed(block, earlier=True)
        return known

    return visited, replace(work.passes, settled=settled)


def _cache_scales(
    work: BlockwiseCalibration,
    sizes: Mapping[str, Tensor] | None,
    spec: ModelSpec,
    prompts: Sequence[Prompt],
    processor: Processor,
) -> dict[str, Any]:
    """Scales of a cache in bytes, of the model with its codes, as one step of the journal; what the manifest says.

    Without ``sizes`` the samples pass the model once more.
    """
    from calibrate.statistics.cache_sizes import cache_sizes
    from export.quantisation.cache_scales import FILE, MARGIN, CacheScales, write_scales

    path, step = Path(work.backend) / FILE, f"{work.backend} cache scales"
    if step not in work.journal.steps:
        began = time.perf_counter()
        if sizes is None:
            sizes = cache_sizes(spec, work.state, prompts, processor, Passes(half=work.half))
        write_scales(work.journal.folder / path, CacheScales.of_sizes(sizes))
        work.journal.finish(step, [path])
        log.info("%s: scales of the cache in %.1f s", work.backend, time.perf_counter() - began)
    return {"file": path.as_posix(), "dtype": "int8", "margin": MARGIN}


def _finished_before(request: CalibrationRequest, journal: Journal) -> bool:
    """Whether there is nothing to resume because the folder has its name; what a kill at the very end left is removed.

    Raises:
        UsageError: the folder is there, and is another calibration's.
    """
    whole = stored_manifest(request.output) is not None and not journal.folder.exists()
    if not whole or not request.resume or request.force:
        return False
    if not journal.finished():
        raise disk.exists_already(request.output)
    disk.clean_up(request.output, journal)
    return True


def _begin(request: CalibrationRequest, journal: Journal) -> None:
    """The partial folder and its journal: new, or as an earlier run left it."""
    folder = journal.folder
    if folder.exists() and not request.resume:
        remove_unfinished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if request.resume:
        log.info("resuming %s: %d finished block(s) kept", folder, len(journal.resume()))
    else:
        journal.begin()


def _backend_block(
    report: Mapping[str, Any], tuning: Mapping[str, Any] | None, check: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A backend's part of the manifest: layers with codes, what tuning did, and what the check on held-out samples said."""
    rounded = frozenset(check["rounded_layers"]) if check else frozenset()
    block: dict[str, Any] = {"layers": {name: row for name, row in report.items() if name not in rounded}}
    return block | ({"scale_tuning": tuning} if tuning else {}) | ({"held_out": check} if check else {})


def _kept_files(journal: Journal, blocks: Mapping[str, Any]) -> list[FileRecord]:
    """Without the files that tuned ones stand for, and those of blocks that went back to plain rounding."""
    gone = {path for name in blocks for path in replaced(name, [record.path for record in journal.files()])}
    gone |= {
        f"{folder}/{block}{ending}"
        for name, account in blocks.items()
        for block in account.get("held_out", {}).get("rounded_blocks", ())
        for folder in (name, f"{name}/{TUNED}")
        for ending in (".safetensors", ".json")
    }
    return sorted((record for record in journal.files() if record.path not in gone), key=lambda record: record.path)


def _remove_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()
