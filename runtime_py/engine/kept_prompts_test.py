"""What slots keep of earlier questions is used again, and never trusted where it was half written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime_py.backends.base import Arrays
from runtime_py.engine.answer import Answer
from runtime_py.engine.engine_test import Asked, Inbox, Room, alone
from runtime_py.errors import MachineError
from runtime_py.model import Model


def test_a_second_question_about_a_picture_runs_no_vision_and_none_of_the_shared_prompt(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    run: Callable[[str, Arrays], dict[str, np.ndarray]] = model.backend.run

    def counted(stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        stages.append(stage)
        return run(stage, inputs)

    monkeypatch.setattr(model.backend, "run", counted)
    room = Room(model, 3, 64)
    first, second, third = Inbox(), Inbox(), Inbox()
    room.submit(Asked(0, 1, 8), first)
    room.run()
    assert "vision_encoder" in stages
    stages.clear()
    room.submit(Asked(1, 1, 8), second)
    room.submit(Asked(3, 1, 8), third)
    room.run()
    assert set(stages) == {"embed_tokens"}
    for inbox, asked in ((second, Asked(1, 1, 8)), (third, Asked(3, 1, 8))):
        assert isinstance(inbox.end, Answer) and inbox.end.ids == alone(model, asked)
        assert inbox.end.timing.kept_tokens >= 11 and inbox.end.timing.image_seconds == 0.0


def test_a_copy_that_fails_leaves_an_empty_cache(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the old prompt over rows that are half another's."""
    room = Room(model, 2, 64)
    first, second, third = Asked(4, 1, 4), Asked(3, 1, 4), Asked(1, 0, 4)
    for asked in (third, first):  # the copy goes to the slot that was left longest ago
        room.submit(asked, Inbox())
        room.run()
    failed, again = Inbox(), Inbox()
    copy = model.backend.copy_prefix  # type: ignore[attr-defined]

    def half(source: Any, target: Any, length: int) -> None:
        copy(source, target, length // 2)
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(model.backend, "copy_prefix", half)
        room.submit(second, failed)
        room.run()
    assert isinstance(failed.end, MachineError)
    assert sorted(slot.session.length > 0 for slot in room.engine.slots) == [False, True]
    room.submit(third, again)
    room.run()
    assert isinstance(again.end, Answer) and again.end.ids == alone(model, third)


def test_a_longer_conversation_stays_for_those_who_come_back_to_it(model: Model) -> None:
    room = Room(model, 2, 64)
    long, other, again = Inbox(), Inbox(), Inbox()
    room.submit(Asked(4, 1, 8), long)
    room.run()
    room.submit(Asked(3, 1, 8), other)
    room.run()
    room.submit(Asked(4, 1, 8), again)
    room.run()
    assert isinstance(again.end, Answer) and isinstance(long.end, Answer) and again.end.ids == long.end.ids
    assert again.end.timing.kept_tokens == again.end.timing.prompt_tokens - 1
