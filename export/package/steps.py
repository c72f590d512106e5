"""The work between a plan and a package's manifest: what each backend builds from, the steps in order, and running them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from export.backends.base import Build, Step
from export.backends.registry import backend_named
from export.checkpoint.opened import OpenedCheckpoint
from export.command.progress import Progress
from export.package.journal import Journal
from export.package.manifest import copy_side_files
from export.package.selftest import write_question
from export.package.source_hashes import SourceHashes
from export.package.tokenizer_files import write_tokenizer
from export.plan.plan import Plan
from export.prompts.chat_template import write_chat_template
from export.prompts.declared import declared_prompt
from export.quantisation.cache_scales import CacheScales
from export.quantisation.stored import StoredCodes
from export.request import ExportRequest
from export.source.side_files import SideFile
from runtime_py.errors import UsageError

VALUES = "values of the checkpoint"


def stored_codes(request: ExportRequest, checkpoint: OpenedCheckpoint, planned: Plan) -> dict[str, StoredCodes]:
    """The calibrated codes of every backend that has int4 layers, checked against the plan before any work.

    Raises:
        UsageError: a backend stores scales of the cache, and there are none, or they are another model's.
    """
    stored = {} if request.calibration is None else _read_codes(request.calibration, checkpoint, planned)
    for name, part in planned.parts.items():
        if part.backend.wants_cache_scales(planned.options):
            _cache_scales(request, stored.get(name)).check(planned.spec.decoder)
    return stored


def _read_codes(calibration: Path, checkpoint: OpenedCheckpoint, planned: Plan) -> dict[str, StoredCodes]:
    assert checkpoint.weights is not None
    quantised = {
        name: part for name, part in planned.parts.items() if any(a.storage == "int4" for a in part.assignments.values())
    }
    return {name: StoredCodes(calibration, name, checkpoint.weights, part.assignments) for name, part in quantised.items()}


def _cache_scales(request: ExportRequest, stored: StoredCodes | None) -> CacheScales:
    """Those of a calibration.

    Raises:
        UsageError: there are none.
    """
    if stored is not None and stored.cache_scales is not None:
        return stored.cache_scales
    named = {"--model": request.model, "--weights": request.weights, "--target": request.target}
    flags = " ".join(f"{flag} {value}" for flag, value in named.items() if value is not None)
    given = "no calibration was given" if stored is None else f"{request.calibration} was made without them"
    raise UsageError(
        f"a cache in bytes needs scales that are chosen from samples, and {given}",
        "a calibration with --cache-precision int8",
        f"run `python -m calibrate {flags} --cache-precision int8 -o scales`, then export with --calibration scales",
    )


def builds_of(
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
            cache_scales=stored[name].cache_scales if name in stored else None,
        )
        for name, part in planned.parts.items()
    }


def steps_of(checkpoint: OpenedCheckpoint, planned: Plan, builds: dict[str, Build], folder: Path) -> list[Step]:
    """All work in order; step names are unique."""
    source, prompt = checkpoint.folder, declared_prompt(checkpoint.spec)
    assert source is not None
    tokens, kept = checkpoint.tokenizer_folder(), checkpoint.kept_files()
    steps = [Step(VALUES, partial(_look_at_values, checkpoint, planned, builds))]
    if tokens is not None:
        steps.append(Step("tokenizer", partial(write_tokenizer, tokens, folder)))
    steps += [
        replace(step, name=step.name if step.name.startswith(name) else f"{name} {step.name}")
        for name, build in builds.items()
        for step in (*planned.parts[name].backend.steps(build), *_target_files(name, build))
    ]
    steps.append(Step("side files", lambda: _side_files(kept, source, planned, builds, folder)))
    steps.append(Step("chat template", lambda: write_chat_template(prompt, folder)))
    steps.append(Step("self-test sample", lambda: write_question(folder)))
    return steps


@contextmanager
def begun(steps: Sequence[Step], journal: Journal) -> Iterator[None]:
    """What the steps that the journal does not hold start elsewhere, under way inside.

    Enter it before anything starts a thread: a process without any can be forked.
    """
    with ExitStack() as ended:
        for step in steps:
            if step.name in journal.steps:
                continue
            if step.end is not None:
                ended.callback(step.end)
            if step.begin is not None:
                step.begin()
        yield


def run(steps: Sequence[Step], journal: Journal, progress: Progress, hashes: SourceHashes) -> None:
    """Run the steps that the journal does not hold, and enter each when its files and the checkpoint's hashes are there.

    A step is entered while the next one runs: its files go to the disk and are hashed meanwhile.
    """
    ahead = [(number, step) for number, step in enumerate(steps, 1) if step.name not in journal.steps]
    entered = ThreadPoolExecutor(1, "journal")
    entering: list[Future[None]] = []
    with ExitStack() as ended:
        # after a failure nothing more is entered; what is under way ends by itself
        ended.callback(entered.shutdown, wait=False, cancel_futures=True)
        for number, step in ahead:
            progress.start(step.name, number, len(steps))
            try:
                written = step.run()
                entering.append(entered.submit(_enter, step.name, written, journal, hashes))
                _raise_first(entering if step is ahead[-1][1] else [future for future in entering if future.done()])
            except BaseException:
                progress.abandon()
                raise
            progress.stop(sum((journal.folder / path).stat().st_size for path in written))


def _enter(name: str, written: list[Path], journal: Journal, hashes: SourceHashes) -> None:
    hashes.records()
    journal.finish(name, written)


def _raise_first(entering: Sequence[Future[None]]) -> None:
    """Wait for these, and raise what the first that failed raised."""
    for future in entering:
        future.result()


def _target_files(backend: str, build: Build) -> list[Step]:
    """What a backend adds for the target's own software, where it adds anything."""
    write = backend_named(backend).target_files.get(build.options.target.name)
    return [] if write is None else [Step(f"{backend} files of the target", partial(write, build))]


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
