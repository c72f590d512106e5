"""What a manifest states of prompts and answers, and the tokenizer beside it, held against what the checkpoint gives.

Both sides are asked in ids that the checkpoint's settings and the package's tokenizer make, and no stop token is honoured:
a prompt with other marks, other ids or an answer that never ends shows in nothing else that is compared. Pixels are compared
apart (`parity_tests.localize.pixels`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from export.package.tokenizer_files import JSON, different, other_ids, proven_equal, published_tokenizer
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind
from parity_tests.judging.probes import PREPROCESS, Question
from parity_tests.judging.results import Comparison, Divergence, Measurement
from parity_tests.reference.checkpoint_side import Checkpoint
from runtime_py.errors import EdgeproofError
from runtime_py.files.json_file import shortened

PROMPT, GENERATION, TOKENIZER = "prompt", "generation", "tokenizer"

Failed = tuple[Comparison, Divergence]
"""A failed comparison, and what is to be looked at."""


def other_prompt(candidate: Candidate, asked: Sequence[Question]) -> Failed | None:
    """Of the first question that the package's own settings write in other ids than the checkpoint's; None where none is."""
    for question in asked:
        if not question.messages:
            continue
        expected = question.input_ids.ravel()
        try:
            found = _own_ids(candidate, question)
        except EdgeproofError as error:
            note = f"runtime in manifest.json makes no prompt of it: {error.what}"
            return failed(candidate, PROMPT, expected.size, expected.size, note, question.name)
        if np.array_equal(found, expected):
            continue
        common = min(found.size, expected.size)
        other = np.flatnonzero(found[:common] != expected[:common])
        at = int(other[0]) if other.size else common
        said, meant = (str(ids[at]) if at < ids.size else "its end" for ids in (found, expected))
        note = f"runtime in manifest.json puts {said} where the checkpoint has {meant}, at token {at} of {expected.size}"
        wrong = int(other.size) + abs(found.size - expected.size)
        return failed(candidate, PROMPT, expected.size, wrong, note, question.name)
    return None


def other_generation(candidate: Candidate, checkpoint: Checkpoint) -> Failed | None:
    """Of the stop ids and sampling defaults; None where all that both sides have are the checkpoint's."""
    given = json.loads(json.dumps(checkpoint.spec.generation))
    stated = candidate.manifest["generation"]
    wrong = {key: value for key, value in given.items() if key in stated and stated[key] != value}
    if not wrong:
        return None
    lines = [f"{key} is {shortened(stated[key])}, the checkpoint's {shortened(value)}" for key, value in wrong.items()]
    return failed(candidate, GENERATION, len(given), len(wrong), f"in manifest.json {'; '.join(lines)}")


def other_tokenizer(candidate: Candidate, checkpoint: Checkpoint) -> Failed | None:
    """Of the tokenizer that both sides are asked through; None where it gives every text the checkpoint's ids."""
    written = candidate.folder / JSON
    if checkpoint.tokenizer_folder is None or not written.is_file():
        return None
    if proven_equal(checkpoint.tokenizer_folder, written):
        return None
    wrong, asked = other_ids(published_tokenizer(checkpoint.tokenizer_folder), written)
    if not wrong:
        return None
    note = f"{JSON} gives other ids than the checkpoint's tokenizer for {len(wrong)} of {asked} texts: {different(wrong)}"
    return failed(candidate, TOKENIZER, asked, len(wrong), note)


def _own_ids(candidate: Candidate, question: Question) -> np.ndarray:
    images = candidate.processor.images(question.pictures) if question.pictures else []
    return candidate.processor.encode(list(question.messages), images).ravel()


def failed(candidate: Candidate, name: str, of: int, wrong: int, note: str, question: str = "") -> Failed:
    measured = Measurement(name, PREPROCESS, Kind.EXACT, (of,), {"mismatches": float(wrong)})
    standard = candidate.implementation_standard()
    compared = Comparison("settings", standard, "what the checkpoint gives", candidate.name, (measured,), question)
    return compared, Divergence(PREPROCESS, name, note=note)
