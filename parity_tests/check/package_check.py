"""``--package``: ask a package and the reference the same questions, and say where they part.

With a checkpoint the reference is our PyTorch model. Without one it is the sample that the check at export recorded in the
manifest: some values of every probe and the greedy tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_tests.check import recorded_sample
from parity_tests.check.ask import ask_all
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.collect_details import collect, waivers
from parity_tests.check.demo_task import demo_checkpoint, task_accuracy
from parity_tests.check.package_crossing import Gates
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.environment import environment
from parity_tests.judging.judge import Judgement, judge
from parity_tests.judging.probes import Question, Recording, record
from parity_tests.judging.results import Comparison, Run
from parity_tests.judging.run_details import Details
from parity_tests.localize.localize import localize
from parity_tests.reference.checkpoint_side import (
    Checkpoint,
    is_quantised,
    open_checkpoint,
    reference,
    stored_reference,
    streams,
)
from parity_tests.reference.streamed import StreamedTorchBackend
from parity_tests.thresholds import Standard, Table
from runtime_py import package as packages
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

STORED = "reference with the stored numbers"

STEPS, STREAMED_STEPS = 8, 2
"""Answer tokens per question; fewer where every step reads the whole checkpoint."""


@dataclass(frozen=True)
class Result:
    """A judged package check.

    Attributes:
        sample: what `recorded_sample` keeps for a later check without the checkpoint.
    """

    judgement: Judgement
    sample: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """``pass``, ``fail`` or ``not run``."""
        return str(self.judgement.verdict)

    @property
    def first_failure(self) -> str | None:
        return self.judgement.first_failure or None

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``verification`` block: verdicts with their figures, and the recorded sample."""
        from parity_tests.report.json_report import probe_json

        rows = [
            {"comparison": judged.comparison.name, "question": judged.comparison.question, **probe_json(probe)}
            for judged in self.judgement.comparisons
            for probe in judged.probes
        ]
        found = self.judgement.run.divergence
        return {
            "verdict": self.verdict,
            "first_failure": self.first_failure,
            "divergence": None if found is None else {"stage": found.stage, "block": found.block, "note": found.note},
            "probes": rows,
            "not_run": [{"what": what, "why": why} for what, why in self.judgement.run.not_run],
            "sample": dict(self.sample),
        }


def check(
    package: Path,
    checkpoint: Path | Checkpoint | None = None,
    *,
    backend: str | None = None,
    codes: Path | None = None,
    device: str = "cpu",
    steps: int | None = None,
    task_pictures: int = 0,
    command: str = "",
    table: Table | None = None,
    in_pieces: bool = False,
    details: bool = False,
    inside: bool | None = None,
) -> Result:
    """Compare a package with its reference.

    Args:
        package: a package folder, finished or still partial.
        checkpoint: what it was made from, its folder or opened; None for the demo checkpoint when it was made from that,
            else the recorded sample.
        backend: runtime backend; None for the package's own.
        codes: the calibration whose codes the package holds; with a folder only.
        device: of the reference, ``cpu`` or ``cuda``.
        steps: answer tokens per question.
        task_pictures: pictures of the demo task to ask the package about; 0 leaves the task out.
        in_pieces: where the reference is streamed, run ONNX graphs piece by piece and an MLC library from mapped weights
            (parity_tests.check.segmented_ort, parity_tests.check.mapped_mlc), so that the check needs about a gigabyte
            at any size.
        details: keep both answers, and what `inside` says, for a report.
        inside: measure every stage, block and quantised layer; None where the reference lies in memory.

    Raises:
        EdgeproofError: the package or the checkpoint cannot be opened.
    """
    given = checkpoint or demo_checkpoint(packages.read(package).manifest)
    opened = open_checkpoint(given, codes) if isinstance(given, Path) else given
    pieces = opened is not None and in_pieces and streams(opened.spec, device)
    candidate = open_candidate(package, backend, in_pieces=pieces)
    try:
        if opened is None:
            return _against_sample(candidate, command, table)
        report = (details, inside)
        return _against_checkpoint(candidate, opened, device, steps, task_pictures, command, table, report)
    finally:
        candidate.backend.close()


def _against_checkpoint(
    candidate: Candidate,
    checkpoint: Checkpoint,
    device: str,
    steps: int | None,
    task_pictures: int,
    command: str,
    table: Table | None,
    report: tuple[bool, bool | None] = (False, None),
) -> Result:
    _same_model(candidate, checkpoint)
    processor = checkpoint.processor(candidate.tokenizer or stand_in(candidate.manifest))
    full = reference(checkpoint.spec, checkpoint.weights, device)
    stored = stored_reference(checkpoint, candidate, device)
    exact = candidate.exact()
    streamed = isinstance(full, StreamedTorchBackend)
    steps = steps or (STREAMED_STEPS if streamed else STEPS)
    asked = questions(processor, 1 if streamed else 3, candidate.limits.context, steps)
    answers = ask_all(full, stored, exact, candidate, processor, asked, steps)
    comparisons: list[Comparison] = []
    for question, (expected, inside, tight, said) in zip(asked, answers, strict=True):
        gates = Gates(checkpoint, stored or full, inside, question, steps, expected.arrays["greedy_ids"])
        if stored is None:
            rows = compare_recordings(expected, said)
            standard = candidate.float_standard()
            compared = Comparison("package", standard, "reference", candidate.name, rows, question.name)
            comparisons += gates.settled(compared, candidate)
            continue
        if exact is not None and tight is not None:
            comparisons += gates.settled(_implementation("implementation", exact, question, inside, tight), exact)
        name = "implementation" if exact is None else "kernels"
        comparisons += gates.settled(_implementation(name, candidate, question, inside, said), candidate)
        loss = Standard.INT4_LOSS if is_quantised(candidate.assignments()) else Standard.FP16
        rows = compare_recordings(expected, inside)
        comparisons.append(Comparison("loss", loss, "full-precision reference", STORED, rows, question.name))
    sample = recorded_sample.keep(asked[0], answers[0][1])
    run = _run(candidate, comparisons, command)
    if judge(run, table).first_failure:
        side = exact or candidate
        standard = side.float_standard() if stored is None else side.implementation_standard()
        run = run.with_divergence(localize(stored or full, side, asked[0], standard, table, processor))
        if exact is not None and run.divergence is not None and not run.divergence.stage:
            note = f"{run.divergence.note} in float32; what is left comes from the package's own roundings"
            run = run.with_divergence(replace(run.divergence, note=note))
    wanted, look_inside = report
    if wanted:
        skip = "" if look_inside or (look_inside is None and not streamed) else "left out (--inside never)"
        skip = "the reference is streamed; ask with --inside always" if streamed and look_inside is None else skip
        pairs = [(expected, said) for expected, _, _, said in answers]
        run = replace(run, details=collect(full, stored, exact, candidate, processor, asked, pairs, skip))
    if task_pictures:
        run = _with_accuracy(run, candidate, None if streamed else full, processor, task_pictures)
    return Result(judge(run, table), sample)


def _same_model(candidate: Candidate, checkpoint: Checkpoint) -> None:
    """Raise UsageError when the checkpoint is another model than the package's.

    Other processor settings are a fault of the package, and judged, when the checkpoint's config.json is the very one.
    """
    made_from = (candidate.manifest["family"], candidate.manifest["variant"], candidate.manifest["runtime"])
    given = (checkpoint.spec.family, checkpoint.spec.variant, checkpoint.spec.runtime)
    if made_from != given and not (made_from[:2] == given[:2] and _same_config(candidate, checkpoint)):
        raise UsageError(
            f"{checkpoint.folder} is not what the package was made from",
            f"{made_from[0]} {made_from[1]} with the same processor settings, found {given[0]} {given[1]}",
            "name the checkpoint of this package with --reference",
        )


def _same_config(candidate: Candidate, checkpoint: Checkpoint) -> bool:
    """Whether config.json is, byte for byte, the one the package was made from."""
    path = checkpoint.folder / "config.json"
    stated = {row["path"]: row["sha256"] for row in candidate.manifest["source"].get("files") or ()}
    return path.is_file() and stated.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()


def _implementation(name: str, side: Candidate, question: Question, inside: Recording, said: Recording) -> Comparison:
    rows = compare_recordings(inside, said)
    return Comparison(name, side.implementation_standard(), STORED, side.name, rows, question.name)


def _against_sample(candidate: Candidate, command: str, table: Table | None) -> Result:
    sample = (candidate.manifest.get("verification") or {}).get("sample")
    if not sample:
        run = _run(candidate, [], command)
        why = "no checkpoint was given and the package holds no recorded sample; name one with --reference"
        run = _with_not_run(run, ("comparison with the reference", why))
        return Result(judge(run, table), {})
    question = recorded_sample.question(sample)
    said = record(
        candidate.backend,
        candidate.processor,
        candidate.limits,
        question,
        recorded_sample.steps(sample),
        recorded_sample.fed(sample),
    )
    whole = not candidate.stores_roundings() and not is_quantised(candidate.assignments())
    standard = candidate.float_standard() if whole else candidate.implementation_standard()
    rows = recorded_sample.compare(sample, said)
    comparison = Comparison("sample", standard, "sample recorded at export", candidate.name, rows)
    return Result(judge(_run(candidate, [comparison], command), table), sample)


def _run(candidate: Candidate, comparisons: list[Comparison], command: str) -> Run:
    manifest = candidate.manifest
    return Run(
        case=candidate.folder.resolve().name.removesuffix(".partial"),
        family=manifest["family"],
        variant=manifest["variant"],
        target=manifest["target"],
        precision=manifest["precision"],
        backend=candidate.name,
        comparisons=tuple(comparisons),
        not_run=candidate.not_run,
        environment=environment(manifest),
        command=command,
        details=Details(waivers=waivers(manifest)),
    )


def _with_not_run(run: Run, entry: tuple[str, str]) -> Run:
    return replace(run, not_run=(*run.not_run, entry))


def _with_accuracy(run: Run, candidate: Candidate, full: TorchBackend | None, processor: Processor, pictures: int) -> Run:
    """The package's task accuracy, and full precision's beside it where that lies in memory."""
    figures = task_accuracy(candidate, pictures)
    if figures is None:
        return _with_not_run(run, ("task accuracy", "the package was not made from a demo checkpoint"))
    if full is not None:
        side = replace(candidate, backend=full, processor=processor)
        figures |= {f"full precision: {name}": value for name, value in (task_accuracy(side, pictures) or {}).items()}
    return replace(run, accuracy=figures)
