"""What a package is asked when no golden says so: drawn pictures and short questions, the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from parity_tests.check.prompts import Prompt, standard_prompts
from parity_tests.judging.probes import Question
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor


class StandInTokenizer:
    """Ids for a package without a tokenizer: every character becomes an ordinary id by its checksum.

    Args:
        vocabulary: rows of the embedding table.
        reserved: ids with a meaning of their own, which text must not produce.
    """

    def __init__(self, vocabulary: int, reserved: Sequence[int]) -> None:
        taken = set(reserved)
        self._ordinary = [token for token in range(vocabulary) if token not in taken]

    def encode(self, text: str) -> list[int]:
        return [self._ordinary[zlib.crc32(letter.encode()) % len(self._ordinary)] for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in ids)

    def token_id(self, token: str) -> int | None:
        return None


def stand_in(manifest: Mapping[str, Any]) -> StandInTokenizer:
    """A stand-in for the tokenizer of a package, sized by its decoder contract."""
    logits = next(t for t in manifest["contracts"]["decoder"]["outputs"] if t["name"] == "logits")
    reserved = [*integers(manifest["runtime"]), *manifest["generation"].get("stop_ids", [])]
    return StandInTokenizer(logits["shape"][-1], reserved)


def integers(value: object) -> list[int]:
    """Every integer in the processor's settings: the special ids, and a few sizes that text can spare as well."""
    if isinstance(value, Mapping):
        return [number for part in value.values() for number in integers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in integers(part)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def questions(
    processor: Processor, count: int, context: int, steps: int, prompts: Sequence[Prompt] | None = None
) -> list[Question]:
    """At most ``count`` of the prompts that the family's format takes and that fit the context with their answer.

    The last is fed in two calls (`with_two_calls`).

    Args:
        prompts: None for the standard ones.

    Raises:
        UsageError: none does.
    """
    asked: list[Question] = []
    refusal: UsageError | None = None
    for prompt in prompts or standard_prompts():
        try:
            question = prompt.question(processor)
        except UsageError as error:
            refusal = error
            continue
        if question.positions + steps <= context and len(asked) < count:
            asked.append(question)
    if not asked:
        raise refusal or UsageError(
            f"no probe question fits a context of {context} positions",
            "room for one picture, a short question and an answer",
            "export with a larger --context",
        )
    return with_two_calls(asked)


def shortest(processor: Processor) -> int:
    """Positions of the shortest of the standard questions that the family's format takes; 0 where it takes none."""
    lengths = []
    for prompt in standard_prompts():
        with suppress(UsageError):
            lengths.append(prompt.question(processor).positions)
    return min(lengths, default=0)


def with_two_calls(asked: Sequence[Question]) -> list[Question]:
    """The last one fed in two calls, so that every check crosses the border between two chunks of a prompt."""
    return [*asked[:-1], replace(asked[-1], calls=2)]
