"""Limits stand where the measured rounding puts them: docs/results/rounding.md, held against the table of limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind
from parity_tests.judging.presets import PRESETS
from parity_tests.judging.standards import Limits, Standard
from parity_tests.thresholds import DEFAULT

PAGE = Path(__file__).parents[1] / "docs" / "results" / "rounding.md"


def rows() -> list[Mapping[str, str]]:
    """Every row of the page's tables, by column; the first two columns are called alike in all of them."""
    told: list[Mapping[str, str]] = []
    names: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("| ") and cells[1] in ("rounding", "comparison"):
            names = ["of", "rounding", *cells[2:]]
        elif line.startswith("| "):
            told.append(dict(zip(names, cells, strict=False)))
    return told


def distances(metric: str, sources: tuple[str, ...], kinds: tuple[Kind, ...]) -> list[float]:
    """How far off the observed figures are, cosines from 1."""
    told = [float(row[metric]) for row in rows() if row["rounding"] in sources and row["array"] in kinds and row.get(metric)]
    return [1 - value if HIGHER_IS_BETTER[metric] else value for value in told]


def bounds(limits: Limits) -> dict[str, float]:
    return {limit.metric: 1 - limit.bound if HIGHER_IS_BETTER[limit.metric] else limit.bound for limit in limits}


TEXT, PICTURES = (Kind.LOGITS, Kind.PROMPT_LOGITS), (Kind.PICTURE_LOGITS,)
INT8 = ("int8 inputs", "kernels")


@pytest.mark.parametrize(
    ("kind", "metric", "kinds"),
    [
        (Kind.LOGITS, "relative_max", (Kind.LOGITS,)),
        (Kind.LOGITS, "worst_row_cosine", (Kind.LOGITS,)),
        (Kind.LOGITS, "kl_max", (Kind.LOGITS,)),
        (Kind.LOGITS, "mean_row_cosine", TEXT),
        (Kind.PROMPT_LOGITS, "mean_row_cosine", TEXT),
        (Kind.PROMPT_LOGITS, "kl_mean", TEXT),
        (Kind.PICTURE_LOGITS, "median_row_cosine", PICTURES),
        (Kind.PICTURE_LOGITS, "kl_median", PICTURES),
    ],
)
def test_rounded_inputs_are_allowed_two_to_three_times_what_they_were_seen_to_do(
    kind: Kind, metric: str, kinds: tuple[Kind, ...]
):
    worst = max(distances(metric, INT8, kinds))
    assert 1.9 * worst < bounds(DEFAULT[Standard.KERNELS_INT8][kind])[metric] < 3.3 * worst


def test_float16_is_allowed_what_was_seen_and_no_more_than_three_times_that():
    for standard in (Standard.FP16, Standard.STORED_FLOAT16):
        limits = bounds(DEFAULT[standard][Kind.LOGITS])
        for metric in ("relative_max", "kl_max", "kl_mean"):
            worst = max(distances(metric, ("float16", "implementation"), (Kind.LOGITS,)))
            assert 1.5 * worst < limits[metric] < 3.3 * worst, metric


def test_of_float32_the_median_picture_row_is_held_to_what_every_row_of_text_is():
    for standard in (Standard.FP32, Standard.STORED_FLOAT32):
        text, pictures = (bounds(DEFAULT[standard][kind]) for kind in (Kind.PROMPT_LOGITS, Kind.PICTURE_LOGITS))
        assert pictures["relative_median"] == text["relative_max"] == 1e-4
        assert pictures["worst_row_cosine"] == text["worst_row_cosine"]
        for metric in ("relative_max", "kl_max"):
            worst = max(distances(metric, ("implementation in float32",), PICTURES))
            assert 1.9 * worst < pictures[metric] < 3.3 * worst, metric


def test_what_rounding_moves_far_is_allowed_three_times_what_it_does_alone():
    seen = distances("moved_ratio", ("kernels, moved far",), (*TEXT, *PICTURES))
    (limit,) = DEFAULT[Standard.MOVED][Kind.LOGITS]
    assert len(seen) > 5
    assert 0.5 < min(seen) < max(seen) < limit.bound / 2


def test_the_strict_preset_is_what_the_page_of_reports_says():
    strict = {limit.metric: limit.bound for limit in PRESETS["strict"]}
    assert strict["kl_mean"] == 0.0013
