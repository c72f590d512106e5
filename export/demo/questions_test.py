"""Every question has exactly one right answer, and it is the one given."""

from __future__ import annotations

import numpy as np
import pytest

from export.demo.pictures import CELLS, COLOURS, SHAPES, Scene, sample_scene
from export.demo.questions import (
    CELLS_ZH,
    COLOURS_ZH,
    KINDS,
    LANGUAGES,
    SHAPES_ZH,
    TASKS,
    Question,
    ask,
    corpus,
    describe,
    sample_questions,
    worn,
)

NAMES = {
    "en": ({s: s for s in SHAPES}, {c: c for c in COLOURS}, {c: c for c in CELLS}),
    "zh": (SHAPES_ZH, COLOURS_ZH, CELLS_ZH),
}


def possible_answers(scene: Scene, question: Question) -> set[str]:
    """Answers of every shape that the question's words fit, worked out from the text alone."""
    shapes, colours, cells = NAMES[question.language]
    text = question.text.replace("What colour", "").replace("Which color", "").replace("What color", "")
    named_shape = [kind for kind, name in shapes.items() if name in text]
    named_colour = [colour for colour, name in colours.items() if name in text]
    fitting = [
        item
        for item in scene.shapes
        if (not named_shape or item.kind in named_shape) and (not named_colour or item.colour in named_colour)
    ]
    if question.kind == "colour":
        return {colours[item.colour] for item in fitting}
    if question.kind == "shape":
        return {f"a {item.kind}" if question.language == "en" else shapes[item.kind] for item in fitting}
    return {cells[CELLS[item.cell]] for item in fitting}


def drawn(count: int) -> list[tuple[Scene, np.random.Generator]]:
    rngs = [np.random.default_rng([11, number]) for number in range(count)]
    return [(sample_scene(rng), rng) for rng in rngs]


@pytest.mark.parametrize("kind", ["colour", "shape", "position"])
def test_words_single_out_one_shape(kind: str) -> None:
    asked = 0
    for scene, rng in drawn(300):
        for language in LANGUAGES:
            question = ask(scene, kind, language, rng)
            if question is not None:
                asked += 1
                assert possible_answers(scene, question) == {question.answer}, (question, scene)
    assert asked > 200


def test_counts_and_digits_are_those_of_the_scene() -> None:
    for scene, rng in drawn(200):
        count, digit = ask(scene, "count", "en", rng), ask(scene, "digit", "zh", rng)
        assert (count.answer if count else "0") == str(len(scene.shapes))
        assert (digit.answer if digit else None) == (scene.digit.kind if scene.digit else None)


def test_descriptions_name_everything_in_reading_order() -> None:
    scene = next(s for s, _ in drawn(300) if len(s.shapes) == 2 and not s.digit)
    first, second = scene.items
    english, chinese = describe(scene, "en"), describe(scene, "zh")
    assert english.index(f"{first.colour} {first.kind}") < english.index(
        f" and a{'n' if second.colour == 'orange' else ''} "
    )
    assert english.endswith(CELLS[second.cell])
    assert chinese.startswith(CELLS_ZH[CELLS[first.cell]])


def test_samples_fill_the_asked_number_and_mix_kinds_and_languages() -> None:
    questions = [question for scene, rng in drawn(200) for question in sample_questions(scene, 4, rng)]
    assert len(questions) == 800
    assert {question.kind for question in questions} == set(KINDS)
    share = {kind: sum(q.kind == kind for q in questions) / 800 for kind in TASKS}
    assert min(share.values()) > 0.08
    assert 0.4 < sum(q.language == "en" for q in questions) / 800 < 0.6


def test_the_corpus_holds_every_text_that_is_asked() -> None:
    texts = set(corpus())
    for scene, rng in drawn(200):
        for question in sample_questions(scene, 4, rng):
            assert question.text in texts
            assert question.kind in {"count", "digit", "describe"} or question.answer in texts | {
                *SHAPES_ZH.values(),
                *COLOURS_ZH.values(),
                *CELLS_ZH.values(),
            }


def test_worn_text_keeps_its_words() -> None:
    rng = np.random.default_rng(0)
    worn_texts = {worn("Where is the star?", rng) for _ in range(200)}
    assert {"Where is the star?", "where is the star", "Where is the star"} <= worn_texts
    assert all(text.lower().startswith("where is the star") for text in worn_texts)
