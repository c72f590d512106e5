"""A package opened by onnxruntime-genai, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity_tests.laboratory.consumers.question import NEW_TOKENS, Question


def version() -> str | None:
    """Of the installed onnxruntime-genai; None where there is none."""
    try:
        import onnxruntime_genai
    except ImportError:
        return None
    return str(onnxruntime_genai.__version__)


def ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of its tokenizer, by text."""
    import onnxruntime_genai as genai

    words = genai.Tokenizer(genai.Model(str(folder)))
    return [[int(token) for token in words.encode(text)] for text in texts]


def answers(folder: Path, asked: list[Question]) -> list[tuple[int, ...]]:
    """Ids of its greedy answers, without the one that ends them.

    Raises:
        RuntimeError: what onnxruntime-genai says of the package.
    """
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    return [_answer(genai, model, question) for question in asked]


def _answer(genai: object, model: object, question: Question) -> tuple[int, ...]:
    params = genai.GeneratorParams(model)  # type: ignore[attr-defined]
    params.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=len(question.ids) + NEW_TOKENS)
    generator = genai.Generator(model, params)  # type: ignore[attr-defined]
    given = genai.NamedTensors()  # type: ignore[attr-defined]
    given["input_ids"] = question.ids[None].astype(np.int32)
    if question.pixels is not None:
        given["pixel_values"] = question.pixels
        given["num_image_tokens"] = np.array([question.rows], np.int64)
    generator.set_inputs(given)
    made: list[int] = []
    while not generator.is_done() and len(made) < NEW_TOKENS:
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    return tuple(made)
