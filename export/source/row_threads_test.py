"""Results in order, errors through, nothing running after the iterator is closed, PyTorch's threads as they were."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import torch

from export.source.row_threads import busy_elsewhere, in_order


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """PyTorch's threads during one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_as_many_threads_as_pytorch_has(threads: int) -> None:
    seen, inner = set(), set()

    def work(number: int) -> int:
        seen.add(threading.get_ident())
        inner.add(torch.get_num_threads())
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_order(work, range(40))) == [number * number for number in range(40)]
    assert len(seen) == threads
    assert inner == {1}
    assert torch.get_num_threads() == threads


def test_few_items_are_taken_ahead(threads: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with closing(in_order(lambda number: number, items())) as results:
        assert next(results) == 0
    assert len(taken) <= threads + 1


def test_an_error_comes_through_and_nothing_runs_after_it(threads: int) -> None:
    running = []

    def work(number: int) -> None:
        running.append(number)
        time.sleep(0.005)
        if number == 2:
            raise ValueError("two")
        running.remove(number)

    with pytest.raises(ValueError, match="two"), closing(in_order(work, range(50))) as results:
        for _ in results:
            pass
    assert running == [2]
    assert torch.get_num_threads() == threads


def test_closing_waits_for_what_runs(threads: int) -> None:
    done = []

    def work(number: int) -> int:
        time.sleep(0.01)
        done.append(number)
        return number

    with closing(in_order(work, range(50))) as results:
        next(results)
    count = len(done)
    time.sleep(0.03)
    assert len(done) == count <= threads + 1


@pytest.mark.parametrize("others", [0, 1, 2, 5])
def test_a_core_is_left_to_other_work_and_one_is_always_taken(others: int, threads: int) -> None:
    running, most = [], []

    def work(number: int) -> None:
        running.append(number)
        most.append(len(running))
        time.sleep(0.002)
        running.remove(number)

    with ExitStack() as busy:
        for _ in range(others):
            busy.enter_context(busy_elsewhere(lambda: True))
        busy.enter_context(busy_elsewhere(lambda: False))
        list(in_order(work, range(30)))
    assert max(most) == max(1, threads - others)
    most.clear()
    list(in_order(work, range(30)))
    assert max(most) == threads
