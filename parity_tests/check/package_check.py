"""``--package``: ask a package and the reference the same questions, and say where they part.

With a checkpoint the reference is our PyTorch model. Without one it is the sample that the check at export recorded in the
manifest: some values of every probe and the greedy tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity_tests.backends import examiner
from parity_tests.check import recorded_sample
from parity_tests.check.ask import ask_all
from parity_tests.check.cache_scales import cut_channels, other_scales
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.collect_details import answer_pairs, collect, waivers
from parity_tests.check.demo_task import demo_checkpoint, task_accuracy
from parity_tests.check.embedding_rows import other_rows
from parity_tests.check.own_questions import OWN_STEPS, OwnData, batches, own_questions
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.check.prompts import demo_prompts
from parity_tests.check.same_model import require_same_model
from parity_tests.check.side_files import not_compared, other_manifest, other_side_files
from parity_tests.check.sides import Sides, open_sides, other_comparisons, sides_of_other
from parity_tests.check.stated_settings import other_generation, other_prompt, other_tokenizer
from parity_tests.check.stored_numbers import more_exact, other_code, other_graph, other_numbers
from parity_tests.judging.accuracy import KNOWN, OWN, in_full
from parity_tests.judging.answer_scores import mean_scores
from parity_tests.judging.drawn import SamplingMode, described, sampling_of
from parity_tests.judging.environment import environment
from parity_tests.judging.judge import Judgement, judge
from parity_tests.judging.probes import Question, record
from parity_tests.judging.results import Comparison, Divergence, Run
from parity_tests.judging.run_details import Answer, Details, Similarity
from parity_tests.judging.standards import Table
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, streams
from runtime_py import package as packages
from runtime_py.contracts import DECODER, VISION
from runtime_py.preprocess.base import Processor

STEPS, STREAMED_STEPS = 8, 2
"""Answer tokens per question; fewer where every step reads the whole checkpoint."""


@dataclass(frozen=True)
class CheckOptions:
    """How a package is checked.

    Attributes:
        backend: runtime name; None for the package's own.
        calibration: the calibration whose codes the package holds.
        device: of the reference, ``cpu`` or ``cuda``.
        steps: answer tokens per question; None for `STEPS`, or `STREAMED_STEPS` where the reference is streamed.
        data: a user's own questions, asked in place of the standard ones.
        only: name of the one standard question that is asked; "" for all.
        demo_questions: ask a demo what it has learnt, in place of the standard questions.
        task_pictures: pictures of the demo task to ask the package about; 0 leaves the task out.
        rebuild: compile the library of a phone's package anew and hold its own against it, bit by bit: in float16 a small
            mistake in it, such as a rotary base 1 % off, is smaller than rounding. Graphs are traced anew: short questions
            do not show what only acts in long contexts. Takes as long as at export.
        in_pieces: where the reference is streamed, hold a small part of the package's weights at a time too, where its
            backend can, so that the check needs about a gigabyte at any size.
        details: keep both answers, and what ``inside`` says, for a report.
        inside: measure every stage, block and quantised layer; None where the reference lies in memory.
        sampling: whose sampling defaults one more answer to each question is drawn with and judged.
        trust: the SHA-256 of the package's manifest, or True, to run code that it brings (`runtime_py.package.trust`).
        table: limits that go before the built-in ones.
        command: what the report says was run.
    """

    backend: str | None = None
    calibration: Path | None = None
    device: str = "cpu"
    steps: int | None = None
    data: OwnData | None = None
    only: str = ""
    demo_questions: bool = False
    task_pictures: int = 0
    rebuild: bool = False
    in_pieces: bool = False
    details: bool = False
    inside: bool | None = None
    sampling: SamplingMode = SamplingMode.GREEDY
    trust: str | bool = False
    table: Table | None = None
    command: str = ""


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
            {"comparison": judged.comparison.title, "question": judged.comparison.question, **probe_json(probe)}
            for judged in self.judgement.comparisons
            for probe in judged.probes
        ]
        part = self.judgement.run.divergence
        return {
            "verdict": self.verdict,
            "first_failure": self.first_failure,
            "divergence": None if part is None else {"stage": part.stage, "block": part.block, "note": part.note},
            "probes": rows,
            "not_run": [{"what": what, "why": why} for what, why in self.judgement.run.not_run],
            "sample": dict(self.sample),
        }


NOT_ITS_GRAPH = "the {} says otherwise than the graph beside it, over the same weights"
BESIDE = "files and entries of the manifest beside graphs and weights"
ALONE = {examiner.LIBRARY: DECODER, examiner.TOWER: VISION}
"""Libraries, and the stages that they run in the graph's place."""


def check(package: Path, checkpoint: Path | Checkpoint | None = None, options: CheckOptions | None = None) -> Result:
    """Compare a package with its reference.

    Args:
        package: a package folder, finished or still partial.
        checkpoint: what it was made from, its folder or opened; None for the demo checkpoint when it was made from that,
            else the recorded sample.

    Raises:
        EdgeproofError: the package or the checkpoint cannot be opened.
    """
    options = options or CheckOptions()
    given = checkpoint or demo_checkpoint(packages.read(package).manifest)
    opened = open_checkpoint(given, options.calibration) if isinstance(given, Path) else given
    pieces = opened is not None and options.in_pieces and streams(opened.spec, options.device)
    candidate = open_candidate(package, options.backend, in_pieces=pieces, trust=options.trust)
    try:
        if opened is None:
            return _against_sample(candidate, options)
        return _against_checkpoint(candidate, opened, options)
    finally:
        candidate.backend.close()


def _against_checkpoint(whole: Candidate, checkpoint: Checkpoint, options: CheckOptions) -> Result:
    require_same_model(whole, checkpoint)
    candidate, others = whole.examiner.decoders(whole)
    processor = checkpoint.processor(candidate.tokenizer or stand_in(candidate.manifest))
    sides = open_sides(candidate, checkpoint, processor, options.device)
    steps = options.steps or (STREAMED_STEPS if sides.streamed else OWN_STEPS if options.data else STEPS)
    asked = _asked(candidate, processor, 1 if sides.streamed else 3, steps, options)
    sampling = sampling_of(options.sampling, candidate.manifest["generation"])
    compared: list[Comparison] = []
    answered: list[tuple[Answer, Similarity | None]] = []
    sample: Mapping[str, Any] = {}
    for batch in batches(asked, checkpoint.spec.decoder.vocabulary, steps) if options.data else [asked]:
        answers = ask_all(sides.full, sides.stored, sides.exact, candidate, processor, batch, steps, sampling)
        compared += [c for q, said in zip(batch, answers, strict=True) for c in sides.comparisons(q, said, steps)]
        answered += answer_pairs(candidate, batch, sides.recordings(answers))
        sample = sample or recorded_sample.keep(asked[0], answers[0][1])
    beside = {name: sides_of_other(sides, other) for name, other in others.items()}
    for name, its in beside.items():
        alike = its.stored is sides.stored and not options.data
        compared += other_comparisons(name, its, asked, steps, answers if alike else ())
    inexact = [other_scales(its.package, sides.nearest) for its in (sides, *beside.values())]
    inexact.append(cut_channels(candidate, sides.nearest))
    inexact.append(other_rows(candidate, sides.nearest, sides.standard, compared, options.table))
    inexact += [] if sides.streamed else [other_numbers(whole, checkpoint)]
    inexact += [other_tokenizer(candidate, checkpoint), other_prompt(candidate, asked)]
    inexact.append(other_generation(candidate, checkpoint))
    unknown = not_compared(candidate)
    inexact += [] if unknown else [other_manifest(candidate, checkpoint), other_side_files(candidate, checkpoint)]
    if options.rebuild:
        inexact.append(other_graph(whole, checkpoint.spec))
        inexact.append(other_code(candidate, checkpoint.spec, sides.nearest, asked[-1]))
    found = [other for other in inexact if other is not None]
    compared += [comparison for comparison, _ in found]
    run = unjudged(candidate, compared, options.command)
    run = _with_not_run(run, (BESIDE, unknown)) if unknown else run
    if sampling is not None:
        run = replace(run, environment={**run.environment, "drawn_ids": f"{options.sampling}: {described(sampling)}"})
    if options.data is not None:
        run = _with_own_data(run, options.data, [answer for answer, _ in answered])
    failing = next((j.comparison for j in judge(run, options.table).comparisons if j.first_failure), None)
    if failing is not None:
        question = next((question for question in asked if question.name == failing.question), asked[0])
        parting = beside.get(failing.decoder, sides)
        if failing.decoder in ALONE:
            divergence = Divergence(ALONE[failing.decoder], note=NOT_ITS_GRAPH.format(failing.decoder))
        else:
            divergence = parting.divergence(question, options.table)
        run = run.with_divergence(more_exact(divergence, failing, found))
    if options.task_pictures:  # before the details, after which a backend may be closed
        run = _with_accuracy(run, replace(sides, package=whole), options.task_pictures)
    unmeasured = _unmeasured(sides, options.inside) if options.details else "no report was asked for (--report-dir)"
    details = collect(sides.full, sides.stored, sides.exact, candidate, processor, asked[:3], answered, unmeasured)
    run = replace(run, details=details)
    return Result(judge(run, options.table), sample)


def _asked(candidate: Candidate, processor: Processor, count: int, steps: int, options: CheckOptions) -> list[Question]:
    context = candidate.limits.context
    if options.data is not None:
        return own_questions(options.data, processor, context, steps)
    prompts = None
    if options.demo_questions and demo_checkpoint(candidate.manifest) is not None and candidate.tokenizer is not None:
        from export.demo.reference import recipe_of

        prompts = demo_prompts(recipe_of(candidate.manifest["family"]))
    asked = questions(processor, count, context, steps, prompts)
    return [question for question in asked if options.only in ("", question.name)]


def _with_own_data(run: Run, data: OwnData, answers: Sequence[Answer]) -> Run:
    """The means of the scores, full precision's beside them, and how many samples were left out."""
    figures = {f"{OWN}{name}": value for name, value in mean_scores([a.candidate_scores for a in answers]).items()}
    whole = mean_scores([answer.reference_scores for answer in answers])
    figures |= {in_full(f"{OWN}{name}"): value for name, value in whole.items()}
    if figures:
        figures[KNOWN] = float(sum(bool(answer.truth) for answer in answers))
    run = replace(run, accuracy={**run.accuracy, **figures})
    left = data.total - len(data.samples)
    return _with_not_run(run, (f"{left:,} of {data.total:,} own samples", "more than --samples")) if left else run


def _unmeasured(sides: Sides, inside: bool | None) -> str:
    """Why nothing inside the stages is measured; "" when it is."""
    if sides.streamed and inside is None:
        return "the reference is streamed; ask with --inside always"
    return "" if inside or inside is None else "left out (--inside never)"


def _against_sample(candidate: Candidate, options: CheckOptions) -> Result:
    sample = (candidate.manifest.get("verification") or {}).get("sample")
    if not sample:
        why = "no checkpoint was given and the package holds no recorded sample; name one with --reference"
        run = _with_not_run(unjudged(candidate, [], options.command), ("comparison with the reference", why))
        return Result(judge(run, options.table), {})
    question, steps, fed = recorded_sample.question(sample), recorded_sample.steps(sample), recorded_sample.fed(sample)
    said = record(candidate.backend, candidate.processor, candidate.limits, question, steps, fed)
    rows = recorded_sample.compare(sample, said)
    comparison = Comparison("sample", candidate.standard(), "sample recorded at export", candidate.name, rows)
    run = unjudged(candidate, [comparison], options.command)
    if options.sampling is not SamplingMode.GREEDY:
        why = "the sample in the package was recorded without sampling; name the checkpoint with --reference"
        run = _with_not_run(run, (f"answers with the {options.sampling}'s sampling", why))
    return Result(judge(run, options.table), sample)


def unjudged(candidate: Candidate, comparisons: Sequence[Comparison], command: str) -> Run:
    """What was compared of a package, with all that its manifest says of it."""
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


def _with_accuracy(run: Run, sides: Sides, pictures: int) -> Run:
    """The package's task accuracy, and full precision's beside it where that lies in memory."""
    figures = task_accuracy(sides.package, pictures)
    if figures is None:
        return _with_not_run(run, ("task accuracy", "the package was not made from a demo checkpoint"))
    if not sides.streamed:
        full = replace(sides.package, backend=sides.full, processor=sides.processor)
        figures |= {in_full(name): value for name, value in (task_accuracy(full, pictures) or {}).items()}
    return replace(run, accuracy={**run.accuracy, **figures})
