"""A user's folder in every form that is read, and everything in one that is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibrate.samples import records as reading
from calibrate.samples.data import from_folder, samples_of
from calibrate.samples.records import QUESTION, records
from runtime_py.errors import EdgeproofError, ImageError, UsageError

TURNS = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Grey."}]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "data" / "in" / "a.png")
    return tmp_path / "data"


def put(folder: Path, *rows: object, name: str = "questions.jsonl") -> Path:
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return folder / name


def test_llavas_form_by_lines_and_as_an_array_is_one(folder: Path):
    row = {"id": "7", "image": "in/a.png", "conversations": [*TURNS, {"from": "human", "value": "Sure?"}]}
    by_line = records(put(folder, row))
    array = records(put(folder, "[", json.dumps(row), "]", name="questions.json"))
    assert [r.place.rpartition(",")[2] for r in (*by_line, *array)] == [" line 1", " line 2"]
    (sample,), (other,) = samples_of(by_line), samples_of(array)
    assert sample.messages == other.messages
    assert [(m.role, m.text, m.images) for m in sample.messages] == [
        ("user", "What colour?", (0,)), ("assistant", "Grey.", ()), ("user", "Sure?", ()),
    ]  # fmt: skip
    assert (sample.name, sample.answers) == ("7", ())


def test_questions_with_answers_of_several_people(folder: Path):
    put(folder, {"image": "in/a.png", "question": "What colour?", "answers": ["grey", "gray"]}, "")
    (sample,) = from_folder(folder, None, 0)
    assert sample.answers == ("grey", "gray")
    assert [(m.role, m.text) for m in sample.messages] == [("user", "What colour?"), ("assistant", "grey")]


def test_pictures_alone_are_asked_one_question(folder: Path):
    picture(folder / "b.PNG")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    assert [(r.name, r.messages[0]["content"]) for r in records(folder)] == [("b.PNG", QUESTION), ("in/a.png", QUESTION)]
    assert records(folder, "Which?")[0].messages[0]["content"] == "Which?"


BAD = [
    ("{", "no JSON"),
    ('"text"', "no JSON object"),
    ({"image": "in/a.png"}, "'messages' is missing"),
    ({"image": 3, "question": "?"}, "named by text"),
    ({"image": "in/a.png", "question": ["?"]}, "question is no text"),
    ({"image": "in/a.png", "question": "?", "answers": [1]}, "answers is no list"),
    ({"image": "in/a.png", "conversations": [{"from": "robot", "value": "?"}]}, "from 'robot'"),
    ({"image": "in/a.png", "conversations": []}, "conversations is no list of turns"),
    ({"image": "in/a.png", "messages": "?"}, "messages is no list of turns"),
    ({"image": "in/a.png", "messages": []}, "or an empty one"),
    ("[" * 100_000, "no JSON"),
    ('{"question": "' + "x" * (1 << 20) + '"}', "characters"),
]  # fmt: skip
AWAY = [
    ("b.png", "is no file"),
    ("../outside.png", "does not lie in the folder"),
    ("in/../../outside.png", "does not lie in the folder"),
    ("/etc/hostname", "does not lie in the folder"),
    ("..\\outside.png", "does not lie in the folder"),
    ("link.png", "is a link"),
    ("linked/outside.png", "is a link"),
    ("a\0.png", "does not lie in the folder"),
    ("x" * 5000, "is no file"),
    ("in", "is no file"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_broken_line_is_refused_by_file_and_line(folder: Path, row: object, said: str):
    put(folder, {"image": "in/a.png", "question": "?"}, "", row)
    with pytest.raises(UsageError, match=r"questions\.jsonl, line 3: ") as refused:
        records(folder)
    assert said in refused.value.what


@pytest.mark.parametrize(("name", "said"), AWAY)
def test_no_picture_outside_the_folder_is_opened(folder: Path, name: str, said: str):
    picture(folder.parent / "outside.png")
    (folder / "link.png").symlink_to(folder / "in" / "a.png")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    put(folder, {"image": name, "question": "?"})
    with pytest.raises(ImageError, match=r"questions\.jsonl, line 1: ") as refused:
        records(folder)
    assert said in refused.value.what


def test_an_array_names_the_line_of_its_broken_entry(folder: Path):
    put(folder, "[", '{"image": "in/a.png", "question": "?"},', "", "{]", name="questions.json")
    with pytest.raises(UsageError, match=r"questions\.json, line 4: no JSON"):
        records(folder)
    put(folder, '[{"image": "in/a.png",', '"question": "?"} {}]', name="questions.json")
    with pytest.raises(UsageError, match=r"questions\.json, line 1: the array has no comma"):
        records(folder)


def test_a_folder_of_nothing_or_of_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    put(folder, {"image": "in/a.png", "question": "?"})
    put(folder, "[]", name="more.json")
    with pytest.raises(UsageError, match=r"several files of questions: more\.json, questions\.jsonl"):
        records(folder)
    with pytest.raises(UsageError, match="is empty"):
        records(folder / "more.json")
    with pytest.raises(UsageError, match="does not exist"):
        records(folder / "absent")
    monkeypatch.setattr(reading, "MOST_BYTES", 10)
    with pytest.raises(UsageError, match="bytes"):
        records(folder / "questions.jsonl")
    (folder / "questions.jsonl").write_bytes(b"\xff\xfe")
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"UTF-8"):
        records(folder / "questions.jsonl")


def test_a_picture_of_absurd_size_or_damaged_is_refused_by_line(folder: Path):
    data = bytearray((folder / "in" / "a.png").read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    (folder / "in" / "b.png").write_bytes(data)
    (folder / "in" / "c.png").write_bytes(b"GIF89a")
    for name in ("b", "c"):
        put(folder, "", {"image": f"in/{name}.png", "question": "?"})
        with pytest.raises(EdgeproofError, match=r"questions\.jsonl, line 2: "):
            from_folder(folder, None, 0)
