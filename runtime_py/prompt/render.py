"""A conversation as the text of a model's prompt, cut where pictures stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from runtime_py.preprocess.base import Message
from runtime_py.prompt.check import SYSTEM
from runtime_py.prompt.format import Place, PromptFormat, SliceMarks

Run = str | list[int]
"""Text that is encoded in one go, marks included, or ids that stand for themselves."""

Blocks = Mapping[int, Sequence[Run]]
"""Picture by its index to what stands for it in the prompt."""


def render(form: PromptFormat, messages: Sequence[Message], blocks: Blocks) -> list[Run]:
    """The runs of a prompt behind `PromptFormat.begin`; no two texts are neighbours.

    The conversation is one that `runtime_py.prompt.check.check` lets through.
    """
    runs: list[Run] = []
    if form.picture.place is Place.START:
        runs += [run for picture in sorted(blocks) for run in blocks[picture]]
    turns = list(messages)
    if form.system is not None and turns and turns[0].role == SYSTEM:
        said = _inside(form, _arranged(form, turns.pop(0).content(), blocks))
        runs += [form.system.before, *said, form.system.after]
    elif form.system is not None and form.system.default:
        runs += [form.system.before, form.system.default, form.system.after]
    first = next((turn for turn in turns if turn.role == "user"), None)
    for turn in turns if form.keeps_history else turns[-1:]:
        runs += _turn(form, turn, blocks, turn is first)
    return joined([*runs, form.answer])


def picture_text(form: PromptFormat, rows: int, clip: bool = False) -> str:
    """The marks of one picture, or of one piece of it."""
    marks = form.picture
    return marks.before + (marks.clip_row if clip else marks.row) * rows + marks.after


def grid_text(marks: SliceMarks, cells: Sequence[str], columns: int) -> str:
    """The cells of a picture row by row, between the marks of slices."""
    rows = ["".join(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return marks.before + marks.row.join(rows) + marks.after


def joined(runs: Iterable[Run]) -> list[Run]:
    """Neighbouring texts as one, empty ones left out."""
    merged: list[Run] = []
    for texts, group in groupby(filter(None, runs), lambda run: isinstance(run, str)):
        parts = list(group)
        merged += ["".join(parts)] if texts else parts  # type: ignore[arg-type]  # of texts alone
    return merged


def _turn(form: PromptFormat, turn: Message, blocks: Blocks, is_first_question: bool) -> list[Run]:
    named = {"user": form.roles.user, "assistant": form.roles.assistant}
    role = named.get(turn.role) or form.other_role.replace("{role}", turn.role)
    said = content(form, turn, blocks, is_first_question)
    end = form.ends.assistant if turn.role == "assistant" else form.ends.user
    return [role, after_role(form, turn), *said, end if said or form.ends_empty_turns else ""]


def after_role(form: PromptFormat, turn: Message) -> str:
    """What stands between a turn's role and its content."""
    special, parts = form.picture.after_role, turn.content()
    if special is None or form.picture.place is Place.START:
        return form.after_role
    pictures = [not isinstance(part, str) for part in parts]
    begins = any(pictures) if form.picture.place is Place.FRONT else any(pictures[:1])
    return special if begins else form.after_role


def content(form: PromptFormat, turn: Message, blocks: Blocks, is_first_question: bool) -> list[Run]:
    """What stands between a turn's role and its end."""
    parts, mark = turn.content(), form.picture.stands_for
    pictures = [part for part in parts if not isinstance(part, str)]
    said = form.join.join(part for part in parts if isinstance(part, str))
    if is_first_question and pictures and mark and mark in said:
        before, after = said.split(mark, 1)
        return joined([before, *(run for picture in pictures for run in blocks[picture]), after])
    return _inside(form, _arranged(form, parts, blocks))


def _arranged(form: PromptFormat, parts: Sequence[str | int], blocks: Blocks) -> list[Run]:
    """Parts in the order of the prompt, joined."""
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if not isinstance(part, str)]
    if form.picture.place is Place.START:
        parts = texts
    elif form.picture.place is Place.FRONT:
        parts = [*pictures, *(texts or [""])]
    runs: list[Run] = []
    for place, part in enumerate(parts):
        runs += [form.join] if place else []
        runs += [part] if isinstance(part, str) else blocks[part]
    return joined(runs)


def _inside(form: PromptFormat, said: list[Run]) -> list[Run]:
    """A content without white space at its two ends, where the prompt is so."""
    if form.trims and said and isinstance(said[0], str):
        said = [said[0].lstrip(), *said[1:]]
    if form.trims and said and isinstance(said[-1], str):
        said = [*said[:-1], said[-1].rstrip()]
    return joined(said)
