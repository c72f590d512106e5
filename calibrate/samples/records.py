r"""A user's pictures and questions as they lie in a folder, read and checked before anything large is opened.

Four forms are told apart by what is there, line by line:

- ours, ``{"images": ["a.jpg"], "messages": [{"role": "user", "content": ...}, ...], "answers": ["red"]}``;
- one question, ``{"image": "a.jpg", "question": "What colour?", "answers": ["red"]}``;
- LLaVA's, ``{"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat colour?"}, ...]}``,
  a line each or one JSON array; pictures of a turn stand in front of its text, as LLaVA's own training code puts them
  (haotian-liu/LLaVA, llava/train/train.py, preprocess_multimodal);
- pictures alone, each asked one question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from runtime_py.errors import ImageError, UsageError

CONVERSATIONS = "conversations.jsonl"
"""Goes before every other file of a folder."""

QUESTION = "What is in the picture?"
"""Asked about pictures that come alone."""

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings that a picture which comes alone may have."""

MOST_BYTES = 512 << 20
"""Of a file of questions; it is read into memory."""

MOST_LETTERS = 1 << 20
"""Of one line, or of one entry of an array."""

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MARK = "<image>"

FORMS = (
    '{"images": [paths], "messages": [{"role": ..., "content": ...}]}, {"image": path, "question": ..., "answers": [...]} '
    'or LLaVA\'s {"image": path, "conversations": [{"from": "human", "value": ...}]}'
)
NEXT = "correct the line, see docs/parity_reports.md"


@dataclass(frozen=True)
class Record:
    """One conversation whose pictures are named, inside the folder, and there.

    Attributes:
        place: file and line, for errors.
        name: the entry's id; its line, or the picture's path, where it has none.
        messages: as `runtime_py.generation.conversation.read` takes them.
        answers: every answer that is right; empty where none is given.
    """

    place: str
    name: str
    pictures: tuple[Path, ...]
    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]


def records(data: Path, question: str = QUESTION) -> list[Record]:
    """Every entry of a folder, or of one file of questions whose pictures lie beside it.

    Args:
        data: a folder with `CONVERSATIONS`, with one other .jsonl or .json file, or with pictures alone; or such a file.
        question: asked about pictures that come alone.

    Raises:
        UsageError: no such file, several that could be meant, or an entry of another form; file and line are named.
        ImageError: a picture that is absent, lies outside the folder or behind a link; file and line are named.
    """
    file = data if data.is_file() else _file_of(data)
    if file is None:
        return _pictures_alone(data, question)
    read = [_record(file, number, row) for number, row in _rows(file)]
    if not read:
        raise UsageError(f"{file} is empty", "at least one conversation", "add a line, see docs/parity_reports.md")
    return read


def _file_of(folder: Path) -> Path | None:
    """The folder's file of questions; None where it holds pictures alone."""
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist", "a folder with pictures and questions", "check the path")
    if (folder / CONVERSATIONS).is_file():
        return folder / CONVERSATIONS
    files = sorted(path for path in folder.iterdir() if path.suffix in (".jsonl", ".json") and path.is_file())
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:6])
        raise UsageError(f"{folder} holds several files of questions: {names}", "one", "name the file itself")
    return files[0] if files else None


def _pictures_alone(folder: Path, question: str) -> list[Record]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    names = [path.relative_to(folder).as_posix() for path in paths]
    if not names:
        raise UsageError(
            f"{folder / CONVERSATIONS} does not exist, nor another .jsonl or .json file, nor a picture",
            f"a folder with {CONVERSATIONS} and pictures, or with pictures alone",
            "see docs/parity_reports.md",
        )
    asked = ({"role": "user", "content": question},)
    return [Record(str(folder / name), name, (_picture(folder, name, str(folder)),), asked, ()) for name in names]


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of the entries."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise UsageError(f"{file} has {size:,} bytes", f"at most {MOST_BYTES:,}", "cut it into several files")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "text in UTF-8", "save it as UTF-8") from error
    if file.suffix == ".json" and text.lstrip().startswith("["):
        yield from _array(file, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > MOST_LETTERS:
            raise _too_long(file, number, len(line))
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad(file, number, f"no JSON: {error}") from error


def _array(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Entries of a JSON array with the line that each begins in."""
    decoder = json.JSONDecoder()
    place, number, seen = text.index("[") + 1, 1, 0
    while True:
        place = _behind_space(text, place)
        number, seen = number + text.count("\n", seen, place), place
        if text[place : place + 1] == "]":
            if text[place + 1 :].strip():
                raise _bad(file, number, "there is text behind the array's end")
            return
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _bad(file, number, f"no JSON: {error}") from error
        if end - place > MOST_LETTERS:
            raise _too_long(file, number, end - place)
        yield number, value
        place = _behind_space(text, end)
        if text[place : place + 1] == ",":
            place += 1
        elif text[place : place + 1] != "]":
            raise _bad(file, number, "the array has no comma or end behind this entry")


def _behind_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _record(file: Path, number: int, row: Any) -> Record:
    place = f"{file}, line {number}"
    if not isinstance(row, dict):
        raise _bad(file, number, "the entry is no JSON object")
    try:
        names, messages = _names(row), _messages(row)
        answers = _answers(row, messages)
    except (KeyError, TypeError, ValueError) as error:
        why = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise _bad(file, number, why) from error
    pictures = tuple(_picture(file.parent, name, place) for name in names)
    given = row.get("id", row.get("question_id", f"line {number}"))
    return Record(place, str(given)[:80], pictures, messages, answers)


def _names(row: Mapping[str, Any]) -> list[str]:
    """Paths of the pictures as they were written."""
    value = row.get("images", row.get("image", []))
    names = [value] if isinstance(value, str) and "images" not in row else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("a picture is named by text, several by a list of texts")
    return names


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    if "conversations" in row:
        return tuple(_llava_turn(turn) for turn in _turns(row, "conversations"))
    if "question" in row:
        if not isinstance(row["question"], str):
            raise TypeError("question is no text")
        return ({"role": "user", "content": row["question"]},)
    return tuple(_turns(row, "messages"))


def _turns(row: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    value = row[key]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise TypeError(f"{key} is no list of turns, or an empty one")
    return value


def _llava_turn(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    role, value = ROLES.get(str(turn["from"])), turn["value"]
    if role is None or not isinstance(value, str):
        raise ValueError(f"a turn is from {turn['from']!r}; turns are text from {', '.join(ROLES)}")
    pictures = [{"type": "image"}] * value.count(MARK)
    text = value.replace(MARK, "").strip()
    return {"role": role, "content": [*pictures, text] if pictures else text}


def _answers(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What is given as right: ``answers``, ``answer``, or what the assistant says last."""
    given = row.get("answers", row.get("answer"))
    if given is None:
        last = messages[-1].get("content")
        return (last,) if messages[-1].get("role") == "assistant" and isinstance(last, str) else ()
    answers = [given] if isinstance(given, str) else given
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise TypeError("answers is no list of texts")
    return tuple(answers)


def _picture(folder: Path, name: str, place: str) -> Path:
    """The path of a picture inside the folder; nothing outside it is opened, whatever a line says."""
    inside = f"the path of a picture inside {folder}, with no link on the way"
    written = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or written.is_absolute() or ".." in written.parts:
        raise ImageError(f"{place}: {name[:200]!r} does not lie in the folder", inside, "copy the picture into the folder")
    path = folder / written
    steps = [folder.joinpath(*written.parts[: count + 1]) for count in range(len(written.parts))]
    try:
        link, there = any(step.is_symlink() for step in steps), path.is_file()
    except OSError:  # a name longer than the file system takes
        link = there = False
    if link:
        raise ImageError(f"{place}: {name[:200]!r} is a link, or lies behind one", inside, "copy the picture itself")
    if not there:
        raise ImageError(f"{place}: {str(path)[:300]} is no file", inside, "check the name")
    return path


def _too_long(file: Path, number: int, letters: int) -> UsageError:
    return UsageError(
        f"{file}, line {number}: the entry has {letters:,} characters", f"at most {MOST_LETTERS:,}", "shorten or remove it"
    )


def _bad(file: Path, number: int, why: str) -> UsageError:
    return UsageError(f"{file}, line {number}: {why}", FORMS, NEXT)
