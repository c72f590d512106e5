"""``--golden DIR``: export a golden's checkpoint, run the package from the raw picture to the last token, compare.

For fp32 the package is held against the published code's arrays at the tolerance of the golden's README. For fp16 it is
held against the same arrays under the half-precision standard. Where the package holds other numbers than the checkpoint
(int4, float16), further comparisons stand apart: our reference against the arrays, so that it may serve as one; the
package against the reference holding the stored numbers (the implementation); that reference against the arrays (the loss).
Arrays that a backend does not show are compared on the reference, in its own comparison.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.rounded_tower import Twin, held_to_twin
from parity_tests.check.sides import STORED
from parity_tests.golden.case import GoldenCase, question, read_case
from parity_tests.golden.inside import AskedOnce
from parity_tests.golden.marks import with_marks
from parity_tests.golden.rounding_flip import Offsets, offsets_to_reference, with_rounding_flip
from parity_tests.golden.side import Answered, against_golden, ask, steps_of
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.environment import environment
from parity_tests.judging.judge import judge
from parity_tests.judging.probes import Question, Recording, record
from parity_tests.judging.results import Comparison, Divergence, Measurement, Run
from parity_tests.judging.standards import Standard, Table
from parity_tests.localize.localize import localize
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, reference, stored_reference
from parity_tests.reference.reference import TorchBackend
from runtime_py.errors import UsageError
from runtime_py.generation.session import Limits

FLOAT_STANDARDS = {"fp32": Standard.GOLDEN, "fp16": Standard.FP16, "int4": Standard.INT4_LOSS}


def check_golden(folder: Path, target: str, precision: str, command: str = "", table: Table | None = None) -> Run:
    """Export, run and compare one golden case.

    Raises:
        EdgeproofError: the folder is no case, or its checkpoint cannot be exported for this target and precision.
    """
    case = read_case(folder)
    scratch = Path(tempfile.mkdtemp(prefix="edgeproof-golden-"))
    try:
        checkpoint = with_marks(case, scratch)
        package = export_case(checkpoint, target, precision, scratch / "package")
        candidate = open_candidate(package)
        try:
            return compare_case(case, candidate, open_checkpoint(checkpoint), precision, command, table)
        finally:
            candidate.backend.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_case(folder: Path, target: str, precision: str, output: Path, host_only: bool = True) -> Path:
    """The golden's checkpoint as a package; nothing is checked during the export, because that is what comes next.

    Args:
        host_only: leave a phone's own library out; this machine's is what runs.
    """
    from export.pipeline import export
    from export.request import ExportRequest
    from targets.registry import target_named

    request = ExportRequest(
        model=str(folder),
        target=target,
        precision=precision,
        output=output,
        skip_verify=True,
        without_tokenizer=True,
        host_only=host_only and target_named(target).phone,
        context=context_of(folder, target) if (folder / "inputs.npz").is_file() else None,
        beyond_trained=True,
    )
    return export(request, None)


def context_of(folder: Path, target: str) -> int | None:
    """Cache positions that the case's longest prompt and answer take, where the default has fewer; None else."""
    from targets.registry import target_named

    case, checkpoint = read_case(folder), open_checkpoint(folder)
    processor, needed = checkpoint.processor(), 0
    for prefix in case.prefixes:
        try:
            asked = question(case, prefix, processor)
        except UsageError:
            continue
        images = processor.images(asked.pictures) if asked.pictures else []
        tokens = processor.layout(asked.input_ids, images).input_ids.shape[1]
        needed = max(needed, tokens + steps_of(case, prefix))
    default = target_named(target).limits.capped(checkpoint.spec.decoder.max_positions).context
    return needed if needed > default else None


def compare_case(
    case: GoldenCase,
    candidate: Candidate,
    checkpoint: Checkpoint,
    precision: str,
    command: str = "",
    table: Table | None = None,
) -> Run:
    """All comparisons of one case for one opened package."""
    answers = ask(case, candidate)
    full = reference(checkpoint.spec, checkpoint.weights)
    stored = stored_reference(checkpoint, candidate)
    standard = FLOAT_STANDARDS[precision]
    comparisons = []
    if precision != "fp32" or not candidate.examiner.shows_values:
        comparisons += against_golden("reference", case, candidate.played_by(full), Standard.GOLDEN, checkpoint)
    if stored is not None:
        comparisons += implementation(case, stored, candidate, answers, checkpoint, table)
        comparisons += against_golden("loss", case, candidate.played_by(stored), standard, checkpoint)
    comparisons += against_golden("golden", case, candidate, standard, checkpoint, answers)
    run = Run(
        case=case.name,
        family=candidate.manifest["family"],
        variant=candidate.manifest["variant"],
        target=candidate.manifest["target"],
        precision=precision,
        backend=candidate.name,
        comparisons=tuple(comparisons),
        not_run=candidate.not_run,
        environment=environment(candidate.manifest),
        command=command,
    )
    verdict = judge(run, table)
    if verdict.first_failure:
        run = run.with_divergence(_divergence(case, stored or full, candidate, table))
    return run


def implementation(
    case: GoldenCase,
    stored: TorchBackend,
    candidate: Candidate,
    answers: Answered,
    checkpoint: Checkpoint,
    table: Table | None = None,
) -> list[Comparison]:
    """The package against the reference that holds the same numbers, one comparison per prompt.

    Where the arithmetic rounds by choice, a copy that does not is compared first, tightly, and then the package as it is;
    what a tower of random weights breaks then is held to one that rounds alike (`parity_tests.check.rounded_tower`).
    """
    comparisons = []
    exact = candidate.exact()
    sides = [] if exact is None else [(exact, ask(case, exact), "implementation")]
    sides.append((candidate, answers, "implementation" if exact is None else "kernels"))
    for prefix in answers.recordings:
        asked = question(case, prefix, candidate.processor)
        tokens, steps = case.outputs.get(f"{prefix}greedy_ids"), steps_of(case, prefix)
        limits = Limits(candidate.limits.context, candidate.limits.context)
        say = partial(record, processor=candidate.processor, limits=limits, question=asked, steps=steps, forced=tokens)
        expected, twin = say(stored), Twin(checkpoint, candidate, say, table)
        for side, said, name in sides:
            rows = compare_recordings(expected, said.recordings[prefix])
            standard = side.implementation_standard()
            compared = Comparison(name, standard, STORED, side.name, rows, prefix)

            def measured(moved: Candidate, expected: Recording = expected, prefix: str = prefix) -> Sequence[Measurement]:
                return compare_recordings(expected, ask(case, moved, (prefix,)).recordings[prefix])

            def offsets(asked: Question = asked) -> Offsets | None:
                return offsets_to_reference(AskedOnce(candidate.played_by(stored), asked), checkpoint)

            parts = with_rounding_flip(compared, "", {row.probe for row in rows}, side, offsets, measured)
            comparisons += parts if side is exact else held_to_twin(parts[0], said.recordings[prefix], twin) + parts[1:]
    return comparisons


def _divergence(case: GoldenCase, against: TorchBackend, candidate: Candidate, table: Table | None) -> Divergence | None:
    side = candidate.exact() or candidate
    for prefix in case.prefixes:
        try:
            asked: Question = question(case, prefix, side.processor)
        except UsageError:
            continue
        return localize(against, side, asked, side.standard(), table)
    return None
