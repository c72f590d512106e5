"""Schemas as constraints: what is allowed, what is refused before an answer begins, and what breaks one off."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llguidance")

from runtime_py.errors import MachineError, SchemaError
from runtime_py.serving.grammar import FORBIDDEN, MAX_SCHEMA_CHARACTERS, Grammars, SchemaConstraint
from runtime_py.serving.refusal import Refusal, of_error
from runtime_py.tokenizer import Tokenizer

STOP = 2


@pytest.fixture
def grammars(words: Tokenizer) -> Grammars:
    return Grammars(words, STOP)


def allowed(constraint: SchemaConstraint, logits: np.ndarray) -> list[int]:
    return [int(token) for token in np.flatnonzero(constraint.masked(logits) > FORBIDDEN)]


@pytest.mark.parametrize("further", [0, 100, -1], ids=["as many", "padded", "fewer"])
def test_only_what_keeps_to_the_schema_is_allowed(grammars: Grammars, words: Tokenizer, further: int) -> None:
    logits = np.arange(len(words.pieces) + further, dtype=np.float32)
    constraint = grammars.of_schema({"enum": [True, False]})
    first = allowed(constraint, logits)
    assert first and all(
        b"true".startswith(piece) or b"false".startswith(piece) for piece in map(words.pieces.__getitem__, first)
    )
    masked = constraint.masked(logits)
    assert masked.shape == logits.shape and (masked[first] == logits[first]).all()
    said = b""
    while not constraint.complete():
        token = max(allowed(constraint, logits))
        constraint.accept(token)
        said += words.pieces[token]
    assert json.loads(said) in (True, False)


def test_an_answer_may_end_where_its_value_may(grammars: Grammars, words: Tokenizer) -> None:
    constraint = grammars.of_schema({"type": "integer"})
    logits = np.zeros(len(words.pieces), np.float32)
    assert STOP not in allowed(constraint, logits)
    constraint.accept(words.pieces.index(b"7"))
    assert STOP in allowed(constraint, logits) and words.pieces.index(b"7") in allowed(constraint, logits)
    constraint.accept(STOP)
    assert constraint.complete()


def test_no_blanks_stand_between_values(grammars: Grammars, words: Tokenizer) -> None:
    """A model that knows little goes on with blanks for as long as it may."""
    constraint = grammars.of_schema({"type": "array"})
    logits = np.zeros(len(words.pieces), np.float32)
    constraint.accept(words.pieces.index(b"["))
    assert not [piece for token in allowed(constraint, logits) if (piece := words.pieces[token]) != piece.lstrip()]


def long_schema(characters: int) -> dict[str, Any]:
    """A schema whose JSON has so many characters."""
    empty = len(json.dumps({"type": "string", "description": ""}))
    return {"type": "string", "description": "x" * (characters - empty)}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nonsense"}, "cannot be kept to"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "cannot be kept to: Unsatisfiable"),
        ({"type": "string", "pattern": "^(?=a)a$"}, "cannot be kept to"),
        ({"$ref": "https://example.com/x.json"}, "cannot be kept to"),
        ({"const": "\ud83d"}, "cannot be kept to"),
        (long_schema(MAX_SCHEMA_CHARACTERS + 1), "has 100,001 characters; at most 100,000"),
    ],
    ids=["no schema", "no value", "no automaton", "elsewhere", "half a pair", "too long"],
)
def test_a_schema_that_is_not_to_be_kept_is_refused(grammars: Grammars, schema: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal, match=why) as refused:
        grammars.of_schema(schema)
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_a_schema_that_takes_too_long_is_refused_before_it_is_worked_out(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime_py.serving.grammar.can_be_worked_out", lambda text: json.loads(text) != {"type": "array"})
    grammars.of_schema({"type": "object"})
    monkeypatch.setattr(grammars, "_library", None)
    with pytest.raises(Refusal, match="takes too long or too much memory") as refused:
        grammars.of_schema({"type": "array"})
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_a_schema_may_be_as_long_as_is_said(grammars: Grammars) -> None:
    grammars.of_schema(long_schema(MAX_SCHEMA_CHARACTERS))


def test_a_schema_of_too_many_forms_at_a_time_fails_and_does_not_look_whole(grammars: Grammars, words: Tokenizer) -> None:
    """llguidance follows 2,000 forms at a time; where there are more it allows the end of the answer alone."""
    forms = [{"type": "object", "properties": {f"k{i}{j}": {"type": "string"} for j in range(30)}} for i in range(60)]
    constraint = grammars.of_schema({"type": "array", "items": {"anyOf": forms}})
    logits = np.zeros(len(words.pieces), np.float32)
    with pytest.raises(SchemaError, match=r"could not be followed further: .*7620 items") as failed:
        for text in (b"[", b"{"):
            constraint.accept(words.pieces.index(text))
            constraint.masked(logits)
    assert "\n" not in failed.value.what
    refusal = of_error(failed.value)
    assert (refusal.status, refusal.param) == (400, "response_format")


def test_what_a_failed_matcher_allows_is_not_chosen_from(grammars: Grammars, words: Tokenizer) -> None:
    """It allows the end alone, and an answer that ends there would look whole."""
    constraint = grammars.of_schema({"type": "integer"})
    constraint._matcher.consume_token(words.pieces.index(b"{"))
    with pytest.raises(SchemaError, match="could not be followed further"):
        constraint.masked(np.zeros(len(words.pieces), np.float32))


def test_a_token_that_the_schema_does_not_allow_fails(grammars: Grammars, words: Tokenizer) -> None:
    with pytest.raises(SchemaError, match="could not be followed further"):
        grammars.of_schema({"type": "integer"}).accept(words.pieces.index(b"{"))


def test_what_is_missing_is_named(words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MachineError, match="llguidance is not installed") as missing:
        Grammars(words, STOP)
    assert missing.value.next_step == "pip install 'edgeproof[serve]'"
