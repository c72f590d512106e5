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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_tests.candidate import Candidate, open_candidate
from parity_tests.checkpoint_side import Checkpoint, open_checkpoint, reference, stored_reference
from parity_tests.compare import compare_arrays, compare_recordings
from parity_tests.environment import environment
from parity_tests.golden_case import GoldenArray, GoldenCase, classify, expected_pixels, fitted, question, read_case
from parity_tests.golden_extras import extra_array
from parity_tests.judge import judge
from parity_tests.localize import localize
from parity_tests.metrics import Kind, measure
from parity_tests.probes import PROBES, Question, Recording, record
from parity_tests.reference import TorchBackend
from parity_tests.results import Comparison, Divergence, Measurement, Run
from parity_tests.thresholds import Standard, Table
from runtime_py.errors import UsageError
from runtime_py.session import Limits

STORED = "reference with the stored numbers"

FLOAT_STANDARDS = {"fp32": Standard.GOLDEN, "fp16": Standard.FP16, "int4": Standard.INT4_LOSS}


@dataclass(frozen=True)
class Answered:
    """One backend's recordings by prompt prefix; ``refused`` says why a prompt could not be run."""

    recordings: Mapping[str, Recording]
    refused: Mapping[str, str]


def check_golden(folder: Path, target: str, precision: str, command: str = "", table: Table | None = None) -> Run:
    """Export, run and compare one golden case.

    Raises:
        EdgeproofError: the folder is no case, or its checkpoint cannot be exported for this target and precision.
    """
    case = read_case(folder)
    scratch = Path(tempfile.mkdtemp(prefix="edgeproof-golden-"))
    try:
        package = export_case(folder, target, precision, scratch / "package")
        candidate = open_candidate(package)
        try:
            return compare_case(case, candidate, open_checkpoint(folder), precision, command, table)
        finally:
            candidate.backend.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export_case(folder: Path, target: str, precision: str, output: Path) -> Path:
    """The golden's checkpoint as a package; nothing is checked during the export, because that is what comes next."""
    from export.pipeline import export
    from export.request import ExportRequest

    request = ExportRequest(
        model=str(folder),
        target=target,
        precision=precision,
        output=output,
        skip_verify=True,
        without_tokenizer=True,
        host_only=target in ("android", "ios"),
    )
    return export(request)


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
    if precision != "fp32" or candidate.name != "ort":
        comparisons.append(against_golden("reference", case, _reference_side(full, candidate), Standard.GOLDEN, checkpoint))
    if stored is not None:
        comparisons += implementation(case, stored, candidate, answers)
        comparisons.append(against_golden("loss", case, _reference_side(stored, candidate), standard, checkpoint))
    comparisons.append(against_golden("golden", case, candidate, standard, checkpoint, answers))
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


def _reference_side(backend: TorchBackend, candidate: Candidate) -> Candidate:
    """The reference dressed as a candidate, so that both are asked and judged by the same code."""
    return Candidate(
        candidate.folder,
        candidate.manifest,
        backend.name,
        backend,
        candidate.processor,
        None,
        Limits(candidate.limits.context, candidate.limits.context),
    )


def ask(case: GoldenCase, side: Candidate) -> Answered:
    """Every prompt of the case, steps forced to the golden's tokens."""
    recordings, refused = {}, {}
    for prefix in case.prefixes:
        tokens = case.outputs.get(f"{prefix}greedy_ids")
        steps = 1 if tokens is None else tokens.shape[1]
        try:
            asked = question(case, prefix, side.processor)
            recordings[prefix] = record(side.backend, side.processor, side.limits, asked, steps, tokens)
        except UsageError as error:
            refused[prefix] = f"the prompt was refused: {error.what}"
    return Answered(recordings, refused)


def against_golden(
    name: str,
    case: GoldenCase,
    side: Candidate,
    standard: Standard,
    checkpoint: Checkpoint,
    answers: Answered | None = None,
) -> Comparison:
    """One side against every array of outputs.npz, in pipeline order; preprocessing first where inputs.npz has it."""
    answers = answers or ask(case, side)
    found = list(_pixels(case, answers))
    arrays = sorted((classify(case, array) for array in case.outputs), key=_pipeline_order(case))
    found += [_against(case, array, side, checkpoint, answers) for array in arrays]
    return Comparison(name, standard, "golden arrays", side.name, tuple(found))


def _pipeline_order(case: GoldenCase):
    order = list(PROBES)

    def key(array: GoldenArray) -> tuple[int, int, int]:
        place = order.index(array.probe) if array.probe else len(order)
        return case.prefixes.index(array.prefix) if array.prefix in case.prefixes else 0, place, array.piece or 0

    return key


def _pixels(case: GoldenCase, answers: Answered) -> Iterable[Measurement]:
    for prefix, recording in answers.recordings.items():
        made = recording.pieces.get("pixel_values", [])
        for name, expected in expected_pixels(case, prefix).items():
            number = name.removeprefix("pixel_values").removeprefix("_")
            chosen = made[int(number) : int(number) + 1] if number else made
            found = fitted(chosen, expected) if chosen else None
            yield compare_arrays(f"{prefix}{name}", expected, found, probe="pixel_values")


def _against(
    case: GoldenCase, array: GoldenArray, side: Candidate, checkpoint: Checkpoint, answers: Answered
) -> Measurement:
    expected = case.outputs[array.name]
    if not array.probe:
        return _extra(case, array, side, checkpoint, answers)
    recording = answers.recordings.get(array.prefix)
    if recording is None:
        return compare_arrays(array.name, expected, None, answers.refused.get(array.prefix, ""), probe=array.probe)
    found = _pick(recording, array, expected, side)
    logits = case.outputs.get(f"{array.prefix}step_logits")
    return compare_arrays(
        array.name, expected, found, recording.absent.get(array.probe, ""), step_logits=logits, probe=array.probe
    )


def _pick(recording: Recording, array: GoldenArray, expected: np.ndarray, side: Candidate) -> np.ndarray | None:
    """The recorded array that a golden array speaks of, in its shape."""
    if array.probe in recording.arrays:
        found = recording.arrays[array.probe]
        return found if array.last_rows is None else found[:, -array.last_rows :]
    pieces = recording.pieces.get(array.probe, [])
    if array.piece is not None:
        pieces = pieces[array.piece : array.piece + 1]
    if array.probe == "connector":
        pieces = _without_boundary_rows(pieces, expected, side)
    return fitted(pieces, expected) if pieces else None


def _without_boundary_rows(pieces: list[np.ndarray], expected: np.ndarray, side: Candidate) -> list[np.ndarray]:
    """A golden may keep the connector apart from the learned rows that our connector puts at either end of an image."""
    rows = sum(piece.size // piece.shape[-1] for piece in pieces)
    images = sum(piece.shape[0] if piece.ndim == 3 else 1 for piece in pieces)
    if rows - 2 * images == expected.size // expected.shape[-1]:
        return [piece[:, 1:-1] if piece.ndim == 3 else piece[1:-1] for piece in pieces]
    return pieces


def _extra(case: GoldenCase, array: GoldenArray, side: Candidate, checkpoint: Checkpoint, answers: Answered) -> Measurement:
    """An array that is no common probe: a table, a module's output, a routing decision, or something nobody looks at."""
    expected = case.outputs[array.name]
    try:
        asked = question(case, array.prefix, side.processor) if array.prefix in answers.recordings else None
        extra = extra_array(case, array, side, checkpoint, asked)
    except (KeyError, NotImplementedError, UsageError) as error:
        extra, why = None, str(error)
    else:
        why = "no probe of that name"
    if extra is None:
        return Measurement(array.name, "", Kind.FEATURES, tuple(expected.shape), not_probed=why)
    shape, found = tuple(expected.shape), extra.values
    if found.size != expected.size:
        problem = f"{list(found.shape)} values instead of {list(expected.shape)}"
        return Measurement(array.name, extra.stage, extra.kind, shape, problem=problem)
    metrics = {**measure(extra.kind, expected, found.reshape(expected.shape)), **extra.further}
    return Measurement(array.name, extra.stage, extra.kind, shape, metrics)


def implementation(case: GoldenCase, stored: TorchBackend, candidate: Candidate, answers: Answered) -> list[Comparison]:
    """The package against the reference that holds the same numbers, one comparison per prompt.

    Where the arithmetic rounds by choice, a copy that does not is compared first, tightly, and then the package as it is.
    """
    found = []
    exact = candidate.exact()
    sides = [] if exact is None else [(exact, ask(case, exact), "implementation")]
    sides.append((candidate, answers, "implementation" if exact is None else "kernels"))
    for prefix in answers.recordings:
        asked = question(case, prefix, candidate.processor)
        tokens = case.outputs.get(f"{prefix}greedy_ids")
        steps = 1 if tokens is None else tokens.shape[1]
        limits = Limits(candidate.limits.context, candidate.limits.context)
        expected = record(stored, candidate.processor, limits, asked, steps, tokens)
        for side, said, name in sides:
            rows = compare_recordings(expected, said.recordings[prefix])
            standard = side.implementation_standard()
            found.append(Comparison(name, standard, STORED, side.name, rows, prefix))
    return found


def _divergence(case: GoldenCase, against: TorchBackend, candidate: Candidate, table: Table | None) -> Divergence | None:
    side = candidate.exact() or candidate
    standard = side.implementation_standard() if side.stores_roundings() else side.float_standard()
    for prefix in case.prefixes:
        try:
            asked: Question = question(case, prefix, side.processor)
        except UsageError:
            continue
        return localize(against, side, asked, standard, table)
    return None
