"""Answers that are JSON of a schema, through llguidance: before each token it says which ones keep the answer one.

Source: guidance-ai/llguidance, python/llguidance (LLTokenizer, LLMatcher, numpy).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import MachineError, SchemaError
from runtime_py.serving.refusal import invalid
from runtime_py.serving.schema_trial import can_be_worked_out
from runtime_py.tokenizer import Tokenizer

FORBIDDEN = -1e30
"""A logit that no sampling chooses, and that is finite."""

MAX_SCHEMA_CHARACTERS = 100_000


class Grammars:
    """Makes constraints for one tokenizer; what llguidance works out of its vocabulary is made once.

    Args:
        stop: id of the token that ends an answer.

    Raises:
        MachineError: llguidance is not installed.
    """

    def __init__(self, words: Tokenizer, stop: int) -> None:
        try:
            import llguidance
            import llguidance.numpy
        except ImportError as error:
            raise MachineError(
                "llguidance is not installed", "the extra 'serve'", "pip install 'edgeproof[serve]'"
            ) from error
        self._library = llguidance
        self.words = words
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(words, stop)))

    def of_schema(self, schema: Mapping[str, Any]) -> SchemaConstraint:
        """A constraint of one answer.

        Raises:
            Refusal: llguidance cannot keep to the schema.
            MachineError: schemas cannot be tried here.
        """
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise invalid(f"the schema has {len(text):,} characters; at most {MAX_SCHEMA_CHARACTERS:,}", "response_format")
        if not can_be_worked_out(text):
            raise invalid("the schema takes too long or too much memory to be worked out; simplify it", "response_format")
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
            matcher = self._library.LLMatcher(self.tokenizer, grammar)
        except Exception as error:  # ValueError of the library, for whatever it finds
            raise invalid(f"the schema cannot be kept to: {error}", "response_format") from error
        if matcher.is_error():
            raise invalid(f"the schema cannot be kept to: {matcher.get_error()}", "response_format")
        return SchemaConstraint(self._library.numpy, matcher, len(self.words.pieces))


class SchemaConstraint:
    """See runtime_py.engine.running.Constraint.

    Raises:
        SchemaError: by `masked` and `accept`, what the schema allows here is more than llguidance follows.
    """

    def __init__(self, arrays: Any, matcher: Any, size: int) -> None:
        self._arrays, self._matcher = arrays, matcher
        self._bits = arrays.allocate_token_bitmask(1, size)

    def masked(self, logits: np.ndarray) -> np.ndarray:
        self._arrays.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        allowed = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little").astype(bool)[: len(logits)]
        allowed = np.pad(allowed, (0, len(logits) - len(allowed)))
        return np.where(allowed, logits, np.float32(FORBIDDEN))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        """A matcher that fails allows the end alone: the answer would stop short and look whole."""
        if self._matcher.is_error():
            why = self._matcher.get_error().partition("\n")[0]
            raise SchemaError(
                f"the schema could not be followed further: {why}",
                "fewer forms and keys that are possible at a time",
                "simplify the schema of response_format",
            )


class _Vocabulary:
    """A tokenizer as llguidance's TokenizerWrapper takes it."""

    def __init__(self, words: Tokenizer, stop: int) -> None:
        self.eos_token_id = stop
        self.bos_token_id = None
        self.tokens: Sequence[bytes] = list(words.pieces)
        self.special_token_ids = [index for index, piece in enumerate(words.pieces) if not piece]
        self._words = words

    def __call__(self, text: bytes | str) -> list[int]:
        return self._words.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)
