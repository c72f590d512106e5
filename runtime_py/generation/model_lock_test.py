"""A model that threads share answers right or says what is wrong; closed ones and wrong arguments are refused."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime_py
from runtime_py.errors import EdgeproofError, InternalError, MachineError, UsageError, wrap_errors
from runtime_py.generation.generate import Overrides
from runtime_py.generation.model_lock import ModelLock
from runtime_py.model import Model

QUESTIONS = ["What colour?", "How many shapes are there?", "Where is it?", "图中有几个图形？", "Hello", "Is it red?"]
GREEDY = Overrides(temperature=0.0, repetition_penalty=1.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return runtime_py.load(exported, threads=1)


def test_eight_threads_share_one_model(model: Model, picture: np.ndarray) -> None:
    def ask(number: int) -> tuple[int, ...]:
        question = QUESTIONS[number % len(QUESTIONS)]
        return model.chat(question, [picture] if number % 2 else [], overrides=GREEDY).ids

    alone = {number: ask(number) for number in range(2 * len(QUESTIONS))}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, list(alone) * 3))
    assert together == list(alone.values()) * 3


def test_an_overtaken_answer_says_so(model: Model) -> None:
    whole = model.chat("Hello", overrides=GREEDY).ids
    first, second = model.generate("Hello", overrides=GREEDY), model.generate("What colour?", overrides=GREEDY)
    started = [next(iter(first)), next(iter(second))]
    assert started[0].id == whole[0]
    with pytest.raises(UsageError, match="left for another one"):
        list(first)
    assert model.chat("Hello", overrides=GREEDY).ids == whole
    with pytest.raises(UsageError, match="left for another one"):
        list(second)


def test_a_question_from_within_an_answer(model: Model) -> None:
    """The callback of one answer asks again, in the same thread: no deadlock, and the first answer says what happened."""
    asked: list[Any] = []

    def again(_: str) -> None:
        if not asked:
            asked.append(None)
            asked.append(model.chat("What colour?", overrides=GREEDY).ids)

    with pytest.raises(UsageError, match="left for another one"):
        model.chat("How many shapes are there?", stream=again, overrides=GREEDY)
    assert asked[1] == model.chat("What colour?", overrides=GREEDY).ids


def test_what_a_callback_raises_passes_unchanged(model: Model) -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        model.chat("Hello", stream=broken, overrides=GREEDY)


def test_a_closed_model_refuses(exported: Path) -> None:
    model = runtime_py.load(exported, threads=1)
    run = model.generate("Hello", overrides=GREEDY)
    assert next(iter(run)).id >= 0
    model.close()
    model.close()
    uses: list[Callable[[], Any]] = [
        lambda: model.chat("Hello"),
        lambda: model.generate("Hello"),
        lambda: list(run),
        model.reset,
        lambda: model.backend.run("embed_tokens", {"input_ids": np.zeros((1, 1), np.int64)}),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="closed"):
            use()


def test_a_model_is_closed_at_the_end_of_its_with_statement(exported: Path) -> None:
    with runtime_py.load(exported, threads=1) as model:
        pass
    with pytest.raises(UsageError, match="closed"):
        model.chat("Hello")


def test_closing_waits_for_the_answer_at_work(exported: Path) -> None:
    model = runtime_py.load(exported, threads=1)
    ids: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        begun.set()
        go_on.wait(30)

    asking = threading.Thread(target=lambda: ids.extend(model.chat("Hello", stream=wait, overrides=GREEDY).ids))
    asking.start()
    assert begun.wait(30)
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive() and not ids
    go_on.set()
    asking.join(30)
    closing.join(30)
    assert not closing.is_alive()
    with runtime_py.load(exported, threads=1) as again:
        assert tuple(ids) == again.chat("Hello", overrides=GREEDY).ids


def each(argument: str, *values: Any) -> list[dict[str, Any]]:
    return [{argument: value} for value in values]


WRONG: list[dict[str, Any]] = [
    {"messages": None},
    {"messages": 5},
    {"messages": b"Hello"},
    {"messages": []},
    {"messages": [5]},
    {"messages": [None]},
    {"messages": {"role": "user", "content": "Hello"}},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": 5, "content": "x"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [{"type": "image", "image": 5}]}]},
    {"messages": [{"role": "user", "content": [5]}]},
    {"images": "photo.jpg"},
    {"images": 5},
    {"images": None},
    {"images": [None]},
    {"images": [5]},
    {"images": [b"bytes"]},
    {"images": ["a\0b"]},
    {"images": np.zeros((4, 4, 3), np.uint8)},
    {"images": [np.zeros((4, 4, 3), np.float32)]},
    {"images": [np.zeros((0, 4, 3), np.uint8)]},
    {"stream": 5},
    {"overrides": {"temperature": 1}},
    {"overrides": 5},
]


@pytest.mark.parametrize("given", WRONG, ids=repr)
def test_wrong_arguments_of_a_chat(model: Model, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        model.chat(**{"messages": "Hello", **given})


@pytest.mark.parametrize(
    "given",
    [
        *each("temperature", "1", [], True, -1.0, float("nan"), float("inf")),
        *each("top_k", 1.5, "3", -1, True),
        *each("top_p", 0.0, 1.5, "x", float("nan")),
        *each("repetition_penalty", 0.0, -1.0, float("nan"), "x"),
        *each("max_new_tokens", 0, -1, 1.5, "3", True),
        *each("seed", "x", 1.5),
        *each("stop_ids", 5, ["a"], "ab", [1.5]),
    ],
    ids=repr,
)
def test_wrong_overrides(model: Model, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        model.chat("Hello", overrides=Overrides(**given))


@pytest.mark.parametrize(
    "given",
    [
        *each("path", None, 5, "a\0b", b"out", [], "x" * 300),
        *each("backend", 5, "nothing", ["ort"]),
        *each("verify", None, 5, "deep", []),
        *each("threads", "4", -1, 1.5, None, True),
        *each("providers", 5, [5], "CPUExecutionProvider"),
        *each("trust", "abc", "", "sha256:"),
    ],
    ids=repr,
)
def test_wrong_arguments_of_load(exported: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        runtime_py.load(**{"path": exported, **given})


def test_every_exception_becomes_an_error_with_three_parts() -> None:
    with pytest.raises(InternalError, match="answering failed: ZeroDivisionError"), wrap_errors("answering"):
        _ = 1 / 0
    with pytest.raises(MachineError, match="out of memory"), wrap_errors("answering"):
        raise MemoryError
    with pytest.raises(MachineError, match="No space left"), wrap_errors("answering"):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    with pytest.raises(UsageError), wrap_errors("answering"):
        raise UsageError("a", "b", "c")
    with pytest.raises(KeyboardInterrupt), wrap_errors("answering"):
        raise KeyboardInterrupt


def test_one_thread_works_at_a_time_and_none_after_closing() -> None:
    lock, inside, most = ModelLock(), [], []

    def work(number: int) -> None:
        with lock.guard("work"):
            inside.append(number)
            time.sleep(0.001)  # long enough for another thread to come in, were it let
            most.append(len(inside))
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert set(most) == {1}
    with lock.closing() as was_open:
        assert was_open
    with pytest.raises(EdgeproofError, match="closed"), lock.guard("work"):
        pass
