"""The smallest context a package is worth making with: one small picture, the prompt around it, and an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from export.plan.plan import picture_rows
from runtime_py import tokenizer
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from targets.base import ANSWER_ROOM

if TYPE_CHECKING:
    from export.checkpoint.opened import OpenedCheckpoint
    from export.request import ExportRequest
    from export.verification import Verifier
    from runtime_py.preprocess.base import Processor

STEP = 64
"""A context that is advised is a multiple of this."""


class _Shortest:
    """Stands for a tokenizer that is not at hand: no text takes fewer tokens than one, and marks have their declared ids."""

    def encode(self, text: str) -> list[int]:
        return [0] if text.strip() else []

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def token_id(self, token: str) -> int | None:
        return None


def refuse_small_context(request: ExportRequest, checkpoint: OpenedCheckpoint, verifier: Verifier | None) -> None:
    """Refuse an asked context that holds no question about a picture, or none of the check that ends the export.

    Where no tokenizer is at hand, the prompt is counted as if every text were a token.

    Raises:
        UsageError: with the least that would do.
    """
    if request.context is None:
        return
    folder = checkpoint.tokenizer_folder()
    words = None if folder is None else tokenizer.load(folder)
    processor = checkpoint.family.make_processor(checkpoint.spec, words or _Shortest())
    try:
        rows, prompt = _smallest_question(processor, words is not None)
    except UsageError:  # a family that is asked otherwise than about one picture
        return
    rows = max(rows, picture_rows(request.target_record(), checkpoint.spec))
    counted = f"{prompt} of the prompt around it" if words else f"at least {prompt} of the prompt around it"
    least, told = rows + prompt + 1, f"{rows} rows of the smallest picture, {counted}, 1 of an answer"
    if verifier is not None and words is not None and not request.skip_verify:
        checked = verifier.least_context(processor, checkpoint.spec)
        if checked > least:
            least, told = checked, f"for a question of the check at the end ({least} with --skip-verify: {told})"
    if request.context < least:
        roomy = -(-(rows + prompt + ANSWER_ROOM) // STEP) * STEP
        raise UsageError(
            f"--context {request.context} holds no question about a picture with its answer",
            f"at least {least}: {told}",
            f"use --context {min(roomy, checkpoint.spec.decoder.max_positions)} or more, or leave the flag out",
        )


def _smallest_question(processor: Processor, exactly: bool) -> tuple[int, int]:
    """Rows of a picture of one pixel, and tokens of a prompt that asks nothing about it.

    Raises:
        UsageError: there is no such question.
    """
    images = processor.images([np.zeros((1, 1, 3), np.uint8)])
    rows = sum(image.rows for image in images)
    try:
        ids = processor.encode([Message("user", "", (0,))], images)
        return rows, int(processor.layout(ids, images).input_ids.shape[1]) - rows
    except UsageError:  # marks of the prompt that nothing but the tokenizer knows
        if exactly:
            raise
        return rows, 1
