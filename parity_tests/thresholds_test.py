"""Limits stand where the measured rounding puts them: docs/results/rounding.md, held against the table of limits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind
from parity_tests.judging.presets import PRESETS
from parity_tests.judging.standards import Limits, Standard
from parity_tests.thresholds import DEFAULT, limits

PAGE = Path(__file__).parents[1] / "docs" / "results" / "rounding.md"
GOLDENS = Path(__file__).parent / "goldens"


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


@pytest.mark.parametrize("standard", [Standard.FP16, Standard.STORED_FLOAT16])
@pytest.mark.parametrize(
    ("kind", "metrics"),
    [(Kind.LOGITS, ("relative_max", "kl_max", "kl_mean")), (Kind.FEATURES, ("relative_max", "worst_row_cosine"))],
)
def test_float16_is_allowed_what_was_seen_and_no_more_than_three_times_that(
    standard: Standard, kind: Kind, metrics: tuple[str, ...]
):
    allowed = bounds(DEFAULT[standard][kind])
    for metric in metrics:
        worst = max(distances(metric, ("float16", "implementation"), (kind,)))
        assert 1.5 * worst < allowed[metric] < 3.3 * worst, metric


@pytest.mark.parametrize("kind", TEXT)
def test_int4_is_allowed_what_rounding_to_nearest_was_seen_to_cost_and_little_more(kind: Kind):
    allowed = bounds(DEFAULT[Standard.INT4_LOSS][kind])
    for metric, bound in allowed.items():
        worst = max(distances(metric, ("int4 weights",), TEXT))
        assert 1.3 * worst < bound < 3.3 * worst, metric


ROUNDED = (Standard.FP32, Standard.FLIPPED, Standard.FP16, Standard.STORED_INT8, Standard.KERNELS_INT8)
CACHED = (Standard.STORED_FLOAT32, Standard.CACHE_INT8, Standard.KERNELS_INT8)
"""Standards by how much rounding they expect."""


@pytest.mark.parametrize("kind", [Kind.TABLE, Kind.FEATURES, Kind.EMBEDS, *TEXT, Kind.TOKENS])
@pytest.mark.parametrize(
    ("strict", "loose"), [*pairwise(ROUNDED), *pairwise(CACHED), (Standard.SECOND_OPINION, Standard.FP16)]
)
def test_no_limit_is_wider_than_where_more_rounding_is_expected(strict: Standard, loose: Standard, kind: Kind):
    narrow, wide = (bounds(DEFAULT[standard][kind]) for standard in (strict, loose))
    assert all(narrow[metric] <= wide[metric] for metric in narrow.keys() & wide.keys())


@pytest.mark.parametrize("standard", [*ROUNDED, *CACHED[:2]])
def test_a_token_may_change_only_at_a_tie_within_the_permitted_error(standard: Standard):
    logits, tokens = (bounds(DEFAULT[standard][kind]) for kind in (Kind.LOGITS, Kind.TOKENS))
    assert logits["flipped_relative"] == 2 * logits["relative_max"]
    assert tokens == {"split_relative": 2 * logits["relative_max"]}


@pytest.mark.parametrize(
    ("case", "kinds", "promise"),
    [
        ("minicpm-v", TEXT, "Expect <= {} absolute on logits"),
        ("minicpm-v", (Kind.FEATURES, Kind.EMBEDS), "and <= {} on"),
        ("minicpm-v", (Kind.PIXELS,), "pixel_values must match to {} if"),
        ("wemm", TEXT, ", logits {}; `greedy_ids` exact"),
        ("wemm", (Kind.FEATURES, Kind.EMBEDS), "connector {0}, inputs_embeds {0}"),
        ("wemm", (Kind.PIXELS,), "`pixel_values` {},"),
        ("awaker2.5-vl", (*TEXT, Kind.FEATURES, Kind.EMBEDS), "tolerance: {} absolute"),
        ("awaker2.5-vl", (Kind.PIXELS,), "{} on pixel_values"),
        ("cogvlm2", (*TEXT, Kind.FEATURES, Kind.EMBEDS), "tolerance: {} absolute"),
        ("cogvlm2", (Kind.PIXELS,), "pixel_values {}."),
        ("xverse-v", (Kind.PIXELS,), "`pixel_values` {},"),
        ("xverse-v", TEXT, ", logits {}; `greedy_ids` exact"),
        ("xverse-v", (Kind.FEATURES, Kind.EMBEDS), "inputs_embeds {}"),
    ],
)
def test_goldens_are_held_to_what_their_pages_promise(case: str, kinds: tuple[Kind, ...], promise: str):
    said = (GOLDENS / case / "README.md").read_text(encoding="utf-8")
    for kind in kinds:
        (limit,) = limits(Standard.GOLDEN, kind, case)
        assert limit.metric == "max_abs"
        assert promise.format(f"{limit.bound:.0e}".replace("e-0", "e-")) in said
    assert bounds(limits(Standard.GOLDEN, Kind.TOKENS, case)) == {"mismatches": 0}


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
