"""The picture, the question and both answers as a person would read them, and how alike the two are end to end."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from parity_tests.judging.answer_scores import scores
from parity_tests.judging.metrics import Kind, centred, equal_prefix, measure, row_cosines
from parity_tests.judging.probes import Question, Recording
from parity_tests.judging.run_details import Answer, Similarity
from runtime_py.preprocess.base import TokenizerLike

LONGEST_EDGE = 240
"""Pixels of a picture's longer edge in a report."""


def answer(
    question: Question,
    reference: Recording,
    candidate: Recording,
    tokenizer: TokenizerLike | None,
    generation: Mapping[str, Any],
) -> Answer:
    """Both answers to one question: drawn where something was drawn, else greedy.

    Args:
        tokenizer: None spells tokens as numbers.
        generation: the manifest's block of this name; its ``stop_ids`` end an answer.
    """
    stops = set(generation.get("stop_ids", ()))
    told = "drawn_ids" if "drawn_ids" in reference.arrays else "greedy_ids"
    ids = [[int(token) for token in side.arrays[told][0]] for side in (reference, candidate)]
    texts = [_text(until(tokens, stops), tokenizer) for tokens in ids]
    shown = question.pictures[0] if question.pictures else None
    return Answer(
        question.name,
        question.text,
        "" if shown is None else picture_data(shown),
        (0, 0) if shown is None else (shown.shape[-2], shown.shape[-3]),
        texts[0],
        texts[1],
        tuple(ids[0]),
        tuple(ids[1]),
        len(until(ids[0], stops)) if stops & set(ids[0]) else None,
        question.truth,
        scores(texts[0], question.truth),
        scores(texts[1], question.truth),
    )


def until(tokens: Sequence[int], stops: Collection[int]) -> list[int]:
    """The tokens before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def _text(tokens: Sequence[int], tokenizer: TokenizerLike | None) -> str:
    return " ".join(map(str, tokens)) if tokenizer is None else tokenizer.decode(tokens)


def picture_data(picture: np.ndarray) -> str:
    """Base64 of a PNG of uint8 RGB (height, width, 3), or of the first frame of a clip, scaled to `LONGEST_EDGE`."""
    frame = picture[0] if picture.ndim == 4 else picture
    image = Image.fromarray(frame)
    image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    stored = io.BytesIO()
    image.save(stored, "PNG", optimize=True)
    return base64.b64encode(stored.getvalue()).decode("ascii")


def similarity(question: str, reference: Recording, candidate: Recording, stops: Collection[int] = ()) -> Similarity | None:
    """The candidate's logits and tokens beside the reference's; None where the shapes differ.

    Args:
        stops: what lies behind the first of these in the reference's greedy answer is not read, and not counted.
    """
    expected, actual = reference.flattened(), candidate.flattened()
    pairs = [(expected[name], actual[name]) for name in ("prefill_logits", "step_logits") if name in actual]
    if len(pairs) < 2 or any(a.shape != b.shape for a, b in pairs):
        return None
    prompt, steps = pairs
    ids = [int(token) for token in expected["greedy_ids"][0]]
    count = min(len(until(ids, stops)) + 1, len(ids))
    read = [side[:, :count] for side in steps]
    text = slice(None) if reference.picture_rows is None else ~reference.picture_rows
    figures = measure(Kind.LOGITS, *read)
    tokens = expected["greedy_ids"][0, :count], actual["greedy_ids"][0, :count]
    return Similarity(
        question=question,
        prompt_cosine=float(row_cosines(*(centred(side[:, text]) for side in prompt)).min(initial=1.0)),
        answer_cosine=figures["worst_row_cosine"],
        mean_cosine=figures["mean_row_cosine"],
        kl_mean=figures["kl_mean"],
        kl_median=figures["kl_median"],
        kl_p99=figures["kl_p99"],
        kl_max=figures["kl_max"],
        top1_agreement=figures["top1_agreement"],
        equal_tokens=equal_prefix(*tokens),
        tokens=len(tokens[0]),
    )
