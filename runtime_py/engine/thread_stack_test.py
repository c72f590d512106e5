"""Threads started inside have the stack, and no others."""

from __future__ import annotations

import threading

import pytest

from runtime_py.engine.thread_stack import STACK_BYTES, thread_stack_size


@pytest.mark.parametrize(("size", "seen"), [(STACK_BYTES, STACK_BYTES), (1, 0)], ids=["taken", "refused"])
def test_the_size_holds_inside_alone(size: int, seen: int) -> None:
    assert threading.stack_size() == 0
    with thread_stack_size(size):
        assert threading.stack_size() == seen
    assert threading.stack_size() == 0


def test_a_thread_writes_deep_into_it() -> None:
    reached: list[int] = []

    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        else:
            reached.append(depth)

    with thread_stack_size(STACK_BYTES):
        thread = threading.Thread(target=deeper, args=(500,))
        thread.start()
    thread.join()
    assert reached == [0]
