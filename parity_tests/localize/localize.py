"""Where two runs part: the first stage that diverges, and inside it the first block.

Every stage is fed the reference's own inputs, so that a fault upstream does not spread into the stages behind it. The
preprocessing comes first, where the two sides have a processor each; when every stage agrees, the answer's steps are
looked at, on a filled cache. The blocks of the first stage that differs are then compared in running order: the
reference's through module hooks, the package's through whatever its backend offers (`BlockOutputs`, or extra graph
outputs of an ONNX copy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from export.specs import ModelSpec
from parity_tests.backends.examiner import BlockOutputs, NotShown, StageView
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind, centred, max_abs, relative_max, row_errors
from parity_tests.judging.probes import Question
from parity_tests.judging.results import Divergence
from parity_tests.judging.standards import Standard, Table
from parity_tests.localize.pixels import differing_settings, localize_pixels
from parity_tests.localize.steps import answer_calls, first_bad_call, reference_blocks
from parity_tests.reference.reference import TorchBackend
from parity_tests.thresholds import limits
from runtime_py.backends.base import Arrays
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.errors import EdgeproofError
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Processor

EXACT = (Standard.FP32, Standard.STORED_FLOAT32)
"""Standards of sides that differ in the order of float32 sums alone."""


@dataclass(frozen=True)
class StageCall:
    """One call of a stage by the reference.

    Attributes:
        output: its first output; logits of every token of the decoder's.
        text: bool (tokens,), rows of the decoder's logits that stand for text; None for other stages.
    """

    inputs: Arrays
    output: np.ndarray
    text: np.ndarray | None = None

    def error(self, actual: np.ndarray, standard: Standard | None = None) -> float:
        """How far an output is off: see `_error`; infinite for another shape."""
        if actual.shape != self.output.shape:
            return float("inf")
        if self.text is None:
            return _error(self.output, actual, standard)
        return _logits_error(self.output[:, self.text], actual[:, self.text], standard)


def localize(
    reference: TorchBackend,
    candidate: Candidate,
    question: Question,
    standard: Standard,
    table: Table | None = None,
    processor: Processor | None = None,
) -> Divergence:
    """The first diverging stage and block; stage "" when every stage agrees on the reference's inputs.

    Args:
        processor: the checkpoint's; None when the two sides share the package's, which then is not searched.
    """
    family = candidate.manifest["family"]
    if processor is not None:
        settings = differing_settings(reference.spec.runtime, candidate.manifest["runtime"])
        pixels = localize_pixels(processor, candidate.processor, question, family, settings, table)
        if pixels is not None:
            return pixels
        candidate = replace(candidate, processor=processor)
    calls = stage_calls(reference, candidate, question)
    for stage, call in calls.items():
        kind = Kind.LOGITS if stage == DECODER else Kind.EMBEDS if stage == EMBED else Kind.FEATURES
        allowed = _bound(standard, kind, family, table)
        if call.error(run_stage(candidate, stage, call.inputs), standard) <= allowed:
            continue
        return _first_block(reference, candidate, stage, call, allowed, standard)
    allowed = _bound(standard, Kind.LOGITS, family, table)
    tokens, chunk = calls[DECODER].inputs["inputs_embeds"].shape[1], candidate.limits.prefill_chunk
    steps = _first_step(reference, candidate, question, allowed, standard, chunk)
    if steps is None and chunk > tokens // 2 > 0:
        steps = _first_step(reference, candidate, question, allowed, standard, tokens // 2, in_one=chunk >= tokens)
    return steps or Divergence("", note="every stage agrees when fed the reference's inputs, and so do the answer's steps")


def _first_step(
    reference: TorchBackend,
    candidate: Candidate,
    question: Question,
    allowed: float,
    standard: Standard,
    chunk: int,
    in_one: bool = False,
) -> Divergence | None:
    """The first decoder call on a filled cache that differs, and the first block in it.

    Args:
        chunk: tokens of the prompt in one call.
        in_one: whether the same prompt in one call is known to agree, and its answer too.
    """
    context = candidate.limits.context
    tape = answer_calls(reference, candidate.processor, question, chunk, context)
    bad = first_bad_call(tape, candidate, lambda expected, actual: not _logits_error(expected, actual, standard) <= allowed)
    if bad is None:
        return None
    index, cache = bad
    filled = sum(tape.tokens(earlier) for earlier in range(index))
    told = f"the prompt's call agrees, the first that differs finds {filled} positions in the cache"
    if 0 < index < tape.prefills:
        told = f"every call of an empty cache agrees; the prompt's call {index + 1} finds {filled} positions in it"
    elif in_one and tape.prefills > 1:  # attention that reads a call's own keys beside the cache errs one call later
        told = (
            f"the prompt in one call and its answer agree; behind {tape.prefills} calls of it, which agree too, the answer"
        )
        told += f" does not: wrong is what a call behind the first leaves in the cache, {filled} positions in all"
    step = max(index - tape.prefills + 1, 0)
    view = candidate.examiner.step_view(candidate, cache, filled)
    if view is None:
        return Divergence(DECODER, note=told, step=step)
    inputs = tape.calls[index][0]
    expected, actual = reference_blocks(reference, tape, index, context), view.blocks(inputs)
    rows = [(block, _difference(array, actual[block], standard)) for block, array in expected.items() if block in actual]
    first = next((block for block, error in rows if not error <= allowed), "")
    good = [block for block, error in rows if error <= allowed]
    inner = reference_blocks(reference, tape, index, context, inside=True)
    place = search(view, inputs, inner, first, good[-1] if good else "", allowed, standard)
    return Divergence(DECODER, place.block or first, tuple(rows), "; ".join(filter(None, [told, place.note])), step)


def _bound(standard: Standard, kind: Kind, family: str, table: Table | None) -> float:
    for limit in limits(standard, kind, family, table):
        if limit.metric in ("relative_max", "max_abs"):
            return limit.bound
    return 0.05


FURTHER = _bound(Standard.FP32, Kind.PICTURE_LOGITS, "", None) / _bound(Standard.FP32, Kind.LOGITS, "", None)
"""How many times further off the worst picture row may be than a row of text (`parity_tests.thresholds`)."""


def _error(expected: np.ndarray, actual: np.ndarray, standard: Standard | None = None) -> float:
    """The largest difference, over the largest reference value unless a golden's standard is asked for."""
    return max_abs(expected, actual) if standard is Standard.GOLDEN else relative_max(expected, actual)


def _logits_error(expected: np.ndarray, actual: np.ndarray, standard: Standard | None = None) -> float:
    """The same without what all tokens of a row have in common, as logits are judged."""
    if standard is Standard.GOLDEN:
        return max_abs(expected, actual)
    return relative_max(centred(expected), centred(actual))


def stage_calls(reference: TorchBackend, candidate: Candidate, question: Question) -> dict[str, StageCall]:
    """The reference's first call of every stage, in pipeline order; the whole prompt in one decoder call."""
    tokens = max(candidate.limits.context, question.input_ids.shape[1])
    images = candidate.processor.images(question.pictures) if question.pictures else []
    layout = candidate.processor.layout(question.input_ids, images)
    with reference.watch() as seen:
        session = Session(reference, candidate.processor, Limits(tokens, tokens))
        embeds = session.merge(layout, session.features(images))
        session.prefill(embeds, layout, "all")
    text = {DECODER: ~layout.image_rows}
    stages = [stage for stage in (VISION, CONNECTOR, EMBED, DECODER) if stage in seen.calls]
    return {stage: StageCall(*seen.calls[stage], text.get(stage)) for stage in stages}


def run_stage(candidate: Candidate, stage: str, inputs: Arrays) -> np.ndarray:
    """The candidate's output for given inputs of a stage."""
    backend = candidate.backend
    if stage == DECODER:
        tokens = inputs["inputs_embeds"].shape[1]
        chunk = candidate.limits.prefill_chunk
        state = backend.start(candidate.limits.context)
        parts = []
        for start in range(0, tokens, chunk):
            stop = min(start + chunk, tokens)
            part = {name: _cut(name, value, start, stop, tokens) for name, value in inputs.items()}
            parts.append(backend.forward(state, part, np.arange(stop - start, dtype=np.int64)))
        return np.concatenate(parts, axis=1)
    outputs = backend.run(stage, inputs)
    return next(iter(outputs.values()))


def _cut(name: str, value: np.ndarray, start: int, stop: int, tokens: int) -> np.ndarray:
    if name == "inputs_embeds":
        return value[:, start:stop]
    return value[..., start:stop] if value.shape[-1] == tokens else value


def _first_block(
    reference: TorchBackend, candidate: Candidate, stage: str, call: StageCall, allowed: float, standard: Standard
) -> Divergence:
    inputs, text = call.inputs, call.text
    try:
        actual = candidate_blocks(candidate, stage, inputs, reference.spec)
    except (EdgeproofError, NotShown) as error:
        return Divergence(stage, note=f"the blocks inside cannot be read: {error}")
    expected = reference.block_outputs(stage, inputs)
    rows = [(b, _difference(array, actual[b], standard, text)) for b, array in expected.items() if b in actual]
    first = next((block for block, error in rows if not error <= allowed), "")
    view = candidate.examiner.stage_view(candidate, stage)
    if view is not None:
        good = [block for block, error in rows if error <= allowed]
        inner = reference.block_outputs(stage, inputs, inside=True)
        place = search(view, inputs, inner, first, good[-1] if good else "", allowed, standard, text)
        return Divergence(stage, place.block or first, tuple(rows), place.note)
    if first or not rows:
        return Divergence(stage, first, tuple(rows), "" if rows else f"backend {candidate.name} gives no block outputs")
    told = f"every named block agrees; the fault lies after {rows[-1][0]}"
    if candidate.examiner.rebuilt:
        told = "every block agrees where the package's numbers run in code built anew: the fault lies in its own library"
    return Divergence(stage, "", tuple(rows), told)


def _difference(expected: np.ndarray, actual: np.ndarray, standard: Standard, text: np.ndarray | None = None) -> float:
    """How far a value inside a stage is off: `_error`, or by rows where that is more; infinite for another size.

    By the worst row where both sides compute in float32, by the median row where rounding is expected.

    Args:
        text: bool (tokens,), rows of the decoder that stand for text; the others may be `FURTHER` off, as their logits may.
    """
    if actual.size != expected.size:
        return float("inf")
    actual = actual.reshape(expected.shape)
    error = _error(expected, actual, standard)
    rows = row_errors(expected, actual)
    if standard in (Standard.GOLDEN, Standard.GOLDEN_FLIPPED) or not rows.size:
        return error
    if text is not None and rows.shape == text.shape:
        rows = np.where(text, rows, rows / FURTHER)
    return max(error, float(rows.max() if standard in EXACT else np.median(rows)))


def search(
    view: StageView,
    inputs: Arrays,
    inner: Mapping[str, np.ndarray],
    bad: str,
    good: str,
    allowed: float,
    standard: Standard,
    text: np.ndarray | None = None,
) -> Divergence:
    """The first module of the reference, between a good and a bad block, whose output no value of the package equals.

    Args:
        inner: the reference's outputs of every module by path, in running order.
        bad: the first diverging block, "" when none of the named ones is.
        good: the last agreeing block before it, "" when there is none.
        text: see `_difference`.
    """
    names = list(inner)
    start = names.index(good) + 1 if good else 0
    stop = names.index(bad) if bad else len(names)
    values, stage = view.between(inputs, good, bad), view.stage
    for name in names[start:stop]:
        if not any(
            _difference(inner[name], value, standard, text) <= allowed for value in values if value.size == inner[name].size
        ):
            if bad and name.startswith(bad + "."):
                return Divergence(stage, bad, note=f"inside it the first is {name.removeprefix(bad + '.')}")
            return Divergence(stage, name)
    return Divergence(stage, bad, note="" if bad else "every block agrees; the fault lies at the stage's output")


def candidate_blocks(
    candidate: Candidate, stage: str, inputs: Arrays, spec: ModelSpec | None = None
) -> Mapping[str, np.ndarray]:
    """Block outputs of the package: from the backend itself, or from what its examiner can make of the files.

    Args:
        spec: of the package's checkpoint, where it is known.
    """
    if isinstance(candidate.backend, BlockOutputs):
        return candidate.backend.block_outputs(stage, inputs)
    return candidate.examiner.block_outputs(candidate, stage, inputs, spec)
