"""Storage that buffers share, by the planner's own order of choice."""

from __future__ import annotations

from export.backends.mlc.storage_plan import StoragePlan


def test_the_smallest_storage_that_holds_a_buffer() -> None:
    plan = StoragePlan()
    large, small, other = plan.take(800, "float16"), plan.take(200, "float16"), plan.take(300, "float32")
    plan.give(large, small, other)
    assert plan.take(150, "float16") is small
    assert plan.take(150, "float16") is large
    assert plan.nbytes == 1300


def test_a_smaller_storage_grows_where_none_holds_a_buffer() -> None:
    plan = StoragePlan()
    first, second = plan.take(100, "float16"), plan.take(60, "float16")
    plan.give(first, second)
    assert plan.take(400, "float16") is first and first.nbytes == 400
    assert plan.nbytes == 460


def test_sizes_too_far_apart_share_nothing() -> None:
    plan = StoragePlan()
    plan.give(plan.take(1700, "float16"))
    assert plan.take(100, "float16").nbytes == 100
    plan.give(plan.take(10, "float32"))
    assert plan.take(176, "float32").nbytes == 176
    assert plan.nbytes == 1700 + 100 + 10 + 176
