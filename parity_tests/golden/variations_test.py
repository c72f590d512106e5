"""Random models of every family, exported and held against the reference; a few here, many under the mark slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.families.published import variants
from export.families.registry import families
from parity_tests.golden.variations import DRAWN, check, vary
from parity_tests.judging.judge import Verdict

KINDS = [
    (name, variant)
    for name, family in families().items()
    if name in DRAWN
    for variant in dict.fromkeys(variants(family.published_table()).values())
]
FAST = {("awaker2.5-vl", "Awaker2.5-VL"), ("cogvlm2", "image-chat")}
SEEDS = 4


@pytest.mark.parametrize(
    ("family", "variant", "seed"),
    [
        pytest.param(*kind, seed, marks=() if seed == 1 and kind in FAST else pytest.mark.slow)
        for kind in KINDS
        for seed in range(1, SEEDS + 1)
    ],
)
def test_a_random_model_is_exported_rightly(family: str, variant: str, seed: int, tmp_path: Path) -> None:
    result = check(vary(family, variant, seed), tmp_path)
    assert result.verdict is Verdict.PASS, (vary(family, variant, seed), result.first_failure)
    probes = {probe.measurement.probe.split("_")[0] for judged in result.comparisons for probe in judged.probes}
    assert {"vision", "connector", "inputs", "prefill", "step", "greedy"} <= probes


def test_every_family_is_varied_and_seeds_differ() -> None:
    assert set(DRAWN) <= set(families())
    assert len(DRAWN) == 7
    for family, variant in KINDS:
        drawn = [vary(family, variant, seed).overrides for seed in range(8)]
        assert all(a != b for index, a in enumerate(drawn) for b in drawn[:index])
        assert vary(family, variant, 3).overrides == drawn[3]
