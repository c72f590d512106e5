"""Calibration samples: pictures with conversations about them, built in or from a user's folder.

Built-in samples, the general set, take turns through four kinds of picture (drawn scenes, printed text, bar charts, noise
with the statistics of photographs) and two languages; the text-only set holds the same conversations without the pictures.
Sample i depends on the seed and i alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.samples.pictures import LINES, NAMES, bar_chart, photograph, text_page
from calibrate.samples.records import Record, records
from runtime_py.errors import EdgeproofError
from runtime_py.generation.conversation import read
from runtime_py.preprocess.base import ImageInputs, Layout, Message, Processor, TokenizerLike

if TYPE_CHECKING:
    from export.demo.pictures import Scene

SIDES = (112, 672)
"""Range of the longer side of a built-in picture."""

KINDS = ("scene", "text", "scene", "chart", "scene", "photograph")
"""What the built-in pictures show, in turn."""

HELD_OUT_FIRST = 1_000_000
"""Number of the first built-in sample that no calibration sees."""

HELD_OUT_SHARE = 5
"""One line in so many of a user's folder is held out where the number of samples spares none."""


@dataclass(frozen=True)
class Sample:
    """A conversation; ``messages`` end with the assistant's answer or the user's question.

    Attributes:
        pictures: uint8 RGB (height, width, 3), indexed by the messages.
        name, place: of a user's sample; place is its file and line.
        answers: every answer that a user calls right; the assistant's last message is the first of them.
    """

    pictures: tuple[np.ndarray, ...]
    messages: tuple[Message, ...]
    name: str = ""
    answers: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True)
class Prompt:
    """A sample as a model's processor prepares it, answer included.

    Attributes:
        answer: tokens of the answer, which stand at the end.
    """

    images: tuple[ImageInputs, ...]
    layout: Layout
    answer: int


def built_in(count: int, seed: int, text_only: bool = False, side: int | None = None, first: int = 0) -> Iterator[Sample]:
    """``count`` samples.

    Args:
        side: the model's picture side, around which drawn pictures are sized; None for `SIDES`.
        first: number of the first one.
    """
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        sample = _built_in(KINDS[number % len(KINDS)], number, rng, side)
        yield Sample((), tuple(Message(m.role, m.text) for m in sample.messages)) if text_only else sample


def _built_in(kind: str, number: int, rng: np.random.Generator, side: int | None) -> Sample:
    chinese = bool(number // len(KINDS) % 2)
    longest = int(rng.integers(SIDES[0], SIDES[1])) if side is None else int(side * rng.uniform(0.8, 3.0))
    width, height = longest, max(32, int(longest * rng.uniform(0.6, 1.0)))
    if rng.random() < 0.5:
        width, height = height, width
    if kind == "scene":
        return _scene(rng, width, height)
    if kind == "text":
        lines = [LINES[i] for i in rng.permutation(len(LINES))[: int(rng.integers(1, 4))]]
        asked = "图中写着什么？" if chinese else "What does the text say?"
        return _asked(text_page(lines, width, height, rng), asked, "\n".join(lines))
    if kind == "chart":
        values = [int(v) for v in rng.permutation(np.arange(1, 10))[: int(rng.integers(3, len(NAMES) + 1))]]
        best = NAMES[int(np.argmax(values))]
        if chinese:
            return _asked(bar_chart(values, width, height, rng), "哪一天的数值最高？", f"{best}的数值最高。")
        return _asked(
            bar_chart(values, width, height, rng), "Which day has the highest value?", f"{best} has the highest value."
        )
    picture = photograph(width, height, rng)
    if chinese:
        return _asked(picture, "这张照片里有什么？", "画面模糊，只有深浅不同的色块。")
    return _asked(picture, "What is in the photo?", "It is blurred: there are only patches of colour, light and dark.")


def _scene(rng: np.random.Generator, width: int, height: int) -> Sample:
    from export.demo.pictures import draw, sample_scene
    from export.demo.questions import sample_questions

    scene: Scene = sample_scene(rng)
    messages: list[Message] = []
    for question in sample_questions(scene, int(rng.integers(1, 4)), rng):
        pictures = () if messages else (0,)
        messages += [Message("user", question.text, pictures), Message("assistant", question.answer)]
    return Sample((draw(scene, width, height),), tuple(messages))


def _asked(picture: np.ndarray, question: str, answer: str) -> Sample:
    return Sample((picture,), (Message("user", question, (0,)), Message("assistant", answer)))


def from_folder(folder: Path, count: int | None, seed: int, text_only: bool = False, held_out: int = 0) -> list[Sample]:
    """A user's samples, in any form that `calibrate.samples.records` reads: ours, LLaVA's, or pictures alone.

    With more lines than ``count``, the seed chooses which, in the file's order.

    Args:
        held_out: lines that `held_out_of_folder` is to find unused, see `divided`.

    Raises:
        UsageError: no such file, no line in it, or a line of another form; the line's number is named.
        ImageError: a picture cannot be read, or does not lie in the folder.
    """
    rows = records(folder)
    return samples_of([rows[i] for i in divided(len(rows), count, held_out, seed)[0]], text_only)


def held_out_of_folder(folder: Path, count: int | None, seed: int, held_out: int) -> list[Sample]:
    """Lines that `from_folder` leaves alone when it is given the same numbers; none where there are too few lines.

    Raises:
        UsageError, ImageError: as `from_folder`.
    """
    rows = records(folder)
    return samples_of([rows[i] for i in divided(len(rows), count, held_out, seed)[1]])


def divided(total: int, count: int | None, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Which of ``total`` lines are samples and which are held out, each in order; no line is both.

    Lines that ``count`` leaves over are held out first; where they are fewer than asked, up to one line in
    `HELD_OUT_SHARE` is. ``held_out`` changes nothing of a choice that leaves enough over.
    """
    wanted = total if count is None else min(count, total)
    held_out = min(held_out, max(total - wanted, total // HELD_OUT_SHARE))
    wanted = min(wanted, total - held_out)
    order = np.random.default_rng(seed).permutation(total)
    return np.sort(order[:wanted]).tolist(), np.sort(order[total - held_out :]).tolist()


def samples_of(records: Sequence[Record], text_only: bool = False) -> list[Sample]:
    """Records with their pictures decoded.

    Raises:
        UsageError, ImageError: a turn of another form, or a picture that cannot be read; file and line are named.
    """
    return [_sample(record, text_only) for record in records]


def _sample(record: Record, text_only: bool) -> Sample:
    try:
        turns, pictures = read(record.messages, [str(path) for path in record.pictures])
    except EdgeproofError as error:
        raise type(error)(f"{record.place}: {error.what}", error.expected, error.next_step) from error
    if record.answers and turns[-1].role != "assistant":
        turns = [*turns, Message("assistant", record.answers[0])]
    if text_only:
        return Sample((), tuple(Message(turn.role, turn.text) for turn in turns), record.name, record.answers, record.place)
    return Sample(tuple(pictures), tuple(turns), record.name, record.answers, record.place)


def prepare(
    samples: Sequence[Sample],
    processor: Processor,
    tokenizer: TokenizerLike,
    cut: Callable[[str], Sequence[int]] | None = None,
) -> Iterator[Prompt]:
    """Samples through the model's own preprocessing and prompt format; a last answer follows its question.

    Args:
        cut: from an answer to its tokens, where a model says them otherwise than the tokenizer cuts them.
    """
    for sample in samples:
        images = processor.images(list(sample.pictures)) if sample.pictures else []
        messages, answer = list(sample.messages), ""
        if messages[-1].role == "assistant":
            answer = messages.pop().text
        ids = processor.encode(messages, images)
        tail = np.array((cut or tokenizer.encode)(answer) if answer else [], dtype=np.int64)
        ids = np.concatenate([ids, tail[None]], axis=1)
        yield Prompt(tuple(images), processor.layout(ids, images), len(tail))
