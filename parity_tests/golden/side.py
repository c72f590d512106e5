"""One side of a golden case: its answers to every prompt, and every array of outputs.npz beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from parity_tests.backends.examiner import NotShown
from parity_tests.check.candidate import Candidate
from parity_tests.golden.case import GoldenArray, GoldenCase, classify, expected_pixels, fitted, question
from parity_tests.golden.extras import extra_array
from parity_tests.golden.rounding_flip import offsets_to_golden, with_rounding_flip
from parity_tests.judging.compare import compare_arrays
from parity_tests.judging.metrics import Kind, measure
from parity_tests.judging.probes import PROBES, Recording, record
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Standard
from parity_tests.reference.checkpoint_side import Checkpoint
from runtime_py.errors import UsageError


@dataclass(frozen=True)
class Answered:
    """One backend's recordings by prompt prefix; ``refused`` says why a prompt could not be run."""

    recordings: Mapping[str, Recording]
    refused: Mapping[str, str]


def steps_of(case: GoldenCase, prefix: str) -> int:
    """How many answer tokens a golden has for a prompt; 1 where it has none."""
    lengths = [
        case.outputs[prefix + name].shape[1] for name in ("greedy_ids", "step_logits") if prefix + name in case.outputs
    ]
    return max(lengths, default=1)


def ask(case: GoldenCase, side: Candidate, prefixes: Sequence[str] | None = None) -> Answered:
    """Every prompt of the case, or those named, steps forced to the golden's tokens."""
    recordings, refused = {}, {}
    for prefix in case.prefixes if prefixes is None else prefixes:
        tokens = case.outputs.get(f"{prefix}greedy_ids")
        try:
            asked = question(case, prefix, side.processor)
            recordings[prefix] = record(side.backend, side.processor, side.limits, asked, steps_of(case, prefix), tokens)
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
) -> list[Comparison]:
    """One side against every array of outputs.npz, in pipeline order; preprocessing first where inputs.npz has it.

    Further comparisons stand behind it where a gate crossed a rounding boundary (`parity_tests.golden.rounding_flip`).
    """
    answers = answers or ask(case, side)
    measurements = list(_pixels(case, answers))
    arrays = sorted((classify(case, array) for array in case.outputs), key=_pipeline_order(case))
    measurements += [_against(case, array, side, checkpoint, answers) for array in arrays]
    comparisons = [Comparison(name, standard, "golden arrays", side.name, tuple(measurements))]
    for prefix in answers.recordings:
        own = [array for array in arrays if array.prefix == prefix]
        measured = partial(_measured, case, own, checkpoint, prefix)
        offsets = partial(offsets_to_golden, case, prefix, checkpoint)
        names = {array.name for array in own}
        comparisons[:1] = with_rounding_flip(comparisons[0], prefix, names, side, offsets, measured)
    return comparisons


def _measured(
    case: GoldenCase, arrays: Sequence[GoldenArray], checkpoint: Checkpoint, prefix: str, side: Candidate
) -> list[Measurement]:
    """One prompt's arrays, asked anew."""
    again = ask(case, side, (prefix,))
    return [_against(case, array, side, checkpoint, again) for array in arrays]


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
            pixels = fitted(chosen, expected) if chosen else None
            yield compare_arrays(f"{prefix}{name}", expected, pixels, probe="pixel_values")


def _against(
    case: GoldenCase, array: GoldenArray, side: Candidate, checkpoint: Checkpoint, answers: Answered
) -> Measurement:
    expected = case.outputs[array.name]
    if not array.probe:
        return _extra(case, array, side, checkpoint, answers)
    recording = answers.recordings.get(array.prefix)
    if recording is None:
        return compare_arrays(array.name, expected, None, answers.refused.get(array.prefix, ""), probe=array.probe)
    actual = _pick(recording, array, expected, side)
    logits = case.outputs.get(f"{array.prefix}step_logits")
    return compare_arrays(
        array.name, expected, actual, recording.absent.get(array.probe, ""), step_logits=logits, probe=array.probe
    )


def _pick(recording: Recording, array: GoldenArray, expected: np.ndarray, side: Candidate) -> np.ndarray | None:
    """The recorded array that a golden array speaks of, in its shape."""
    if array.probe in recording.arrays:
        picked = recording.arrays[array.probe]
        picked = picked if array.last_rows is None else picked[:, -array.last_rows :]
        if array.probe in ("step_logits", "greedy_ids") and expected.ndim > 1:
            picked = picked[:, : expected.shape[1]]
        return picked.reshape(expected.shape) if picked.size == expected.size else picked
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
    except (KeyError, NotShown, UsageError) as error:
        extra, why = None, str(error)
    else:
        why = "no probe of that name"
    if extra is None:
        return Measurement(array.name, "", Kind.FEATURES, tuple(expected.shape), not_probed=why)
    shape, actual = tuple(expected.shape), extra.values
    if actual.size != expected.size:
        problem = f"{list(actual.shape)} values instead of {list(expected.shape)}"
        return Measurement(array.name, extra.stage, extra.kind, shape, problem=problem)
    metrics = {**measure(extra.kind, expected, actual.reshape(expected.shape)), **extra.further}
    return Measurement(array.name, extra.stage, extra.kind, shape, metrics)
