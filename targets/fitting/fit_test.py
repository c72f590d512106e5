"""The nearest setting that fits: smaller contexts first, then smaller precisions."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from targets.base import Limits
from targets.devices import Device
from targets.fitting.fit import CONTEXT_STEP, largest_context, nearest_fit

WEIGHTS = {"fp32": 8000, "fp16": 4000, "int4": 1000}
PER_POSITION = {"fp32": 2, "fp16": 1, "int4": 1}


def device(usable: int) -> Device:
    return Device("d", "D", ("cpu",), usable * 2, usable, "test")


def needed(precision: str, limits: Limits) -> Mapping[str, int]:
    return {"weights": WEIGHTS[precision], "kv_cache": PER_POSITION[precision] * limits.context}


def test_a_smaller_context_comes_before_a_smaller_precision() -> None:
    nearest = nearest_fit(device(5000), "fp16", Limits(4096, 512), list(WEIGHTS), needed)
    assert nearest is not None
    assert (nearest.precision, nearest.limits.context, nearest.needed) == ("fp16", 960, 4960)
    assert nearest.flags() == "--precision fp16 --context 960 --prefill-chunk 512"


def test_fewer_sequences_come_before_a_smaller_context() -> None:
    def several(precision: str, limits: Limits) -> Mapping[str, int]:
        return {"weights": WEIGHTS[precision], "kv_cache": PER_POSITION[precision] * limits.context * limits.batch}

    nearest = nearest_fit(device(5000), "int4", Limits(1000, 512, 8), list(WEIGHTS), several)
    assert nearest is not None and (nearest.limits, nearest.needed) == (Limits(1000, 512, 4), 5000)
    assert nearest.flags() == "--precision int4 --context 1000 --prefill-chunk 512 --batch 4"
    nearest = nearest_fit(device(1500), "int4", Limits(1000, 512, 8), list(WEIGHTS), several)
    assert nearest is not None and nearest.flags() == "--precision int4 --context 448 --prefill-chunk 448 --batch 1"


def test_as_many_sequences_stay_as_fit() -> None:
    def several(precision: str, limits: Limits) -> Mapping[str, int]:
        return {"kv_cache": limits.context * limits.batch}

    for usable, flags in [
        (7 * 512, "--context 512 --prefill-chunk 512 --batch 7"),
        (512, "--context 512 --prefill-chunk 512 --batch 1"),
        (511, "--context 448 --prefill-chunk 448 --batch 1"),
    ]:
        nearest = nearest_fit(device(usable), "int4", Limits(512, 512, 8), ["int4"], several)
        assert nearest is not None and nearest.flags() == f"--precision int4 {flags}"
    nearest = nearest_fit(device(511), "int4", Limits(512, 512, 2), ["int4"], several)
    assert nearest is not None and nearest.flags().endswith("--batch 1"), "fewer than the two that were asked for"
    nearest = nearest_fit(device(511), "int4", Limits(512, 512, 1), ["int4"], several)
    assert nearest is not None and "--batch" not in nearest.flags()


def test_a_context_holds_a_picture_beside_a_question_and_an_answer() -> None:
    """In whole steps: 600 rows and 256 more are 856 positions, and 896 is the next step."""
    for usable, context in [(4096, 4096), (4095, 4032), (896, 896)]:
        nearest = nearest_fit(device(usable), "int4", Limits(4096, 512), ["int4"], positions, 600)
        assert nearest is not None and nearest.limits.context == context
    assert nearest_fit(device(895), "int4", Limits(4096, 512), ["int4"], positions, 600) is None
    assert nearest_fit(device(860), "int4", Limits(860, 512), ["int4"], positions, 600) is not None, (
        "the whole of a smaller one"
    )


def positions(_precision: str, limits: Limits) -> Mapping[str, int]:
    return {"kv_cache": limits.context}


def test_the_precision_that_is_closest_goes_first_in_whatever_order_they_are_listed() -> None:
    for listed in (["int4", "fp16", "fp32"], ["fp32", "fp16", "int4"]):
        nearest = nearest_fit(device(5000), "fp32", Limits(512, 512), listed, needed)
        assert nearest is not None and nearest.precision == "fp16"


def test_a_budget_that_is_met_to_the_byte_is_met() -> None:
    assert largest_context(lambda context: context, 256, 4096, 256) == 256
    assert largest_context(lambda context: context, 256, 4096, 1024) == 1024
    assert largest_context(lambda context: context, 256, 4096, 4096) == 4096
    assert largest_context(lambda context: context, 256, 4096, 255) is None


def test_then_the_next_smaller_precision_at_the_asked_context() -> None:
    nearest = nearest_fit(device(5000), "fp32", Limits(512, 512), list(WEIGHTS), needed)
    assert nearest is not None
    assert (nearest.precision, nearest.limits.context) == ("fp16", 512)


def test_no_fit_is_named_where_nothing_fits() -> None:
    assert nearest_fit(device(900), "fp32", Limits(512, 512), list(WEIGHTS), needed) is None


@given(st.integers(1, 20_000), st.integers(1, 9000), st.integers(1, 50), st.integers(0, 300_000))
def test_bisection_finds_what_a_scan_finds(high: int, base: int, slope: int, budget: int) -> None:
    low = min(256, high)
    largest = largest_context(lambda context: base + slope * context, low, high, budget)
    candidates = [high, *range(low, high + 1, CONTEXT_STEP)]
    fitting = [c for c in candidates if base + slope * c <= budget]
    assert largest == (max(fitting) if fitting else None)
