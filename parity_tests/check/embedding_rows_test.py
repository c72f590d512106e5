"""Rows of an embedding that no question reads: every one is looked up, and the furthest of a wrong part is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity_tests.check.embedding_rows import other_rows
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Limit, Standard

WORDS, CHUNK = 23, 8
TABLE = np.random.default_rng(0).normal(size=(WORDS, 6)).astype(np.float32)


def side(table: np.ndarray) -> Any:
    def run(stage: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert stage == "embed_tokens" and inputs["input_ids"].shape[1] <= CHUNK
        return {"inputs_embeds": table[inputs["input_ids"]]}

    return SimpleNamespace(run=run, spec=SimpleNamespace(decoder=SimpleNamespace(vocabulary=WORDS)))


def found(table: np.ndarray, compared: tuple[Comparison, ...] = (), limit: float | None = None) -> Any:
    limits = SimpleNamespace(prefill_chunk=CHUNK)
    candidate: Any = SimpleNamespace(manifest={"family": "minicpm-v"}, limits=limits, backend=side(table), name="ort")
    own = None if limit is None else {Standard.FP32: {Kind.EMBEDS: (Limit("relative_max", limit, "mine"),)}}
    return other_rows(candidate, side(TABLE), Standard.FP32, compared, own)


def with_row(token: int, value: float) -> np.ndarray:
    table = TABLE.copy()
    table[token, 2] = value
    return table


@pytest.mark.parametrize("value", [5.0, np.nan, np.inf])
@pytest.mark.parametrize(("token", "part"), [(0, "0 to 7"), (7, "0 to 7"), (8, "8 to 15"), (22, "16 to 22")])
def test_any_row_may_be_the_wrong_one(token: int, part: str, value: float) -> None:
    compared, divergence = found(with_row(token, value))
    assert divergence.note.startswith(f"of the rows of tokens {part}, that of token {token} is furthest")
    (measured,) = compared.measurements
    assert (compared.standard, measured.kind, measured.metrics["max_abs"] > 1) == (Standard.FP32, Kind.EMBEDS, True)


def test_rows_within_the_limits_are_right() -> None:
    close = TABLE * np.float32(1 + 1e-6)
    assert found(TABLE) is None
    assert found(close) is None
    assert found(close, limit=1e-8) is not None


def test_nothing_is_looked_up_where_questions_show_wrong_rows_already() -> None:
    def asked(error: float, standard: Standard = Standard.FP32, kind: Kind = Kind.EMBEDS) -> tuple[Comparison, ...]:
        row = Measurement("inputs_embeds", "embed_tokens", kind, (1,), {"relative_max": error, "worst_row_cosine": 1.0})
        return (Comparison("package", standard, "", "", (row,)),)

    wrong = with_row(3, 5.0)
    assert found(wrong, asked(0.5)) is None
    assert found(wrong, asked(0.0)) is not None
    assert found(wrong, asked(0.5, Standard.INT4_LOSS)) is not None, "of another reference"
    assert found(wrong, asked(0.5, kind=Kind.FEATURES)) is not None, "of another array"
