"""Our reading of the schemas against the library's: what it refuses we refuse, and what it accepts too."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from export.package.journal import FileRecord
from runtime_py.files import schema
from runtime_py.files.schema import FOLDER, Schema

EXPORT_SCHEMA = Path(__file__).parents[2] / "export" / "package" / "journal.schema.json"
FILES = [*sorted(FOLDER.glob("*.schema.json")), EXPORT_SCHEMA]

TOY = {
    "type": "object",
    "required": ["a"],
    "additionalProperties": False,
    "maxProperties": 3,
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 9},
        "b": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/word"}},
        "c": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "d": {"type": "object", "propertyNames": {"$ref": "#/$defs/word"}, "additionalProperties": {"enum": [1, "x", None]}},
        "f": {"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": {"type": "null"}},
        "e": {"title": "a word or a list", "anyOf": [{"$ref": "#/$defs/word"}, {"type": "array"}]},
    },
    "$defs": {"word": {"type": "string", "title": "a word", "minLength": 1, "maxLength": 5, "pattern": "^[a-z]+$"}},
}

CASES: list[tuple[Any, list[str]]] = [
    ({"a": 1}, []),
    ({"a": 1, "b": ["x"], "c": None}, []),
    ({"a": 1, "d": {"x": None, "y": 1}}, []),
    ([], ["the value: a list is no object"]),
    ({}, ["the value: the key 'a' is missing"]),
    ({"a": True}, ["a: true is no integer"]),
    ({"a": 10}, ["a: 10 is not 0 to 9"]),
    ({"a": 1, "z": 1}, ["z: not expected here"]),
    ({"a": 1, "b": []}, ["b: 0 items, not 1 to 2"]),
    ({"a": 1, "b": ["X"]}, ["b[0]: 'X' is not a word"]),
    ({"a": 1, "b": ["x\n"]}, ["b[0]: 'x\\n' is not a word"]),
    ({"a": 1, "c": False}, ["c: false is no number or null"]),
    ({"a": 1, "c": "1"}, ["c: '1' is no number or null"]),
    ({"a": 1, "c": 0}, ["c: 0 is not at most any, above 0"]),
    ({"a": 1, "d": {"": 1}}, ["the key d.: 0 characters, not 1 to 5"]),
    ({"a": 1, "d": {"x": True}}, ["d.x: true is none of 1, x, null"]),
    ({"a": 1, "e": []}, []),
    ({"a": 1, "f": {"x": None, "y": None}}, []),
    ({"a": 1, "f": {"x": 1, "y": 1}}, ["f.x: 1 is no null", "f.y: not expected here"]),
    ({"a": 1, "e": "X"}, ["e: 'X' is not a word or a list"]),
    ({"a": 1, "e": {"x": 1, "type": 2}}, ["e: an object is not a word or a list"]),
    ({"a": 1, "e": {"x": 1, "type": "file"}}, ["e: an object of the type 'file' is not a word or a list"]),
    ({"a": 1, "b": 1, "c": 1, "d": 1}, ["the value: 4 keys, not at most 3"]),
]


@pytest.mark.parametrize(("value", "problems"), CASES, ids=lambda value: json.dumps(value)[:40])
def test_problems_are_named_by_place(value: Any, problems: list[str]) -> None:
    assert Schema(TOY).problems(value) == problems


def test_problems_are_cut() -> None:
    lines = Schema({"type": "array", "items": {"type": "null"}}).problems([1] * 100_000)
    assert len(lines) == schema.MAX_PROBLEMS


def test_a_keyword_that_is_not_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"#/properties/a uses multipleOf"):
        Schema({"properties": {"a": {"multipleOf": 3}}})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_shipped_schemas_are_schemas(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    value = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(value)
    Schema(value)


def strange(value: Any, draw: Random) -> Any:
    """A copy with one to three places changed to something of another kind, range or form."""
    made = deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(made))
        inner, key = draw.choice(places)
        kind = draw.randrange(4)
        if kind == 0 and isinstance(inner, dict):
            del inner[key]
        elif kind == 1 and isinstance(inner, dict):
            inner[draw.choice(("extra", "", "../x", "a b"))] = draw.choice((1, "x", None))
        else:
            strangers: tuple[Any, ...] = (
                None,
                True,
                0,
                1,
                -1,
                2**40,
                0.5,
                -0.5,
                "",
                "a",
                "../x",
                "a\n",
                "A" * 64,
                "x" * 30_000,
                [],
                {},
                [1, 2],
                {"a": 1},
            )
            inner[key] = draw.choice(strangers)
    return made


def _places(value: Any) -> Any:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def as_the_library_must(path: Path) -> Any:
    """A schema for jsonschema, whose ``$`` is Python's and would pass over a line feed at the end of a text."""
    return json.loads(path.read_text(encoding="utf-8").replace('$"', '\\\\Z"'))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_the_manifest_schema_is_read_as_the_library_reads_it(exported: Path, number: int) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    value = strange(json.loads((exported / "manifest.json").read_text(encoding="utf-8")), Random(number))
    library = jsonschema.Draft202012Validator(as_the_library_must(FOLDER / "manifest.schema.json"))
    theirs = sorted({tuple(error.absolute_path) for error in library.iter_errors(value)})
    assert bool(schema.load("manifest").problems(value)) == bool(theirs), theirs


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
@example(37699437)
def test_the_journal_schema_is_read_as_the_library_reads_it(number: int) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    record = vars(FileRecord("onnx/a.bin", 3, "0" * 64))
    good = {"fingerprint": {"a": 1}, "steps": {"one": [record]}, "source": {"x": "1" * 64}, "replaced": None}
    shipped = json.loads(EXPORT_SCHEMA.read_text(encoding="utf-8"))
    value = strange(good, Random(number))
    library = jsonschema.Draft202012Validator(as_the_library_must(EXPORT_SCHEMA))
    assert bool(Schema(shipped).problems(value)) == bool(list(library.iter_errors(value)))
    assert Schema(shipped).problems(good) == []


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_the_request_schema_is_read_as_the_library_reads_it(number: int) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    picture = {"type": "image_url", "image_url": {"url": "u"}}
    good = {
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, picture]}],
        "stop": ["a"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {"type": "text"},
    }
    request = schema.load("chat_request")
    assert request.problems(good) == []
    value = strange(good, Random(number))
    library = jsonschema.Draft202012Validator(request.root)
    assert bool(request.problems(value)) == bool(list(library.iter_errors(value)))
