"""What a prompt has no form for is refused with the turn, and with what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.prompt.check import check
from runtime_py.prompt.format import ByRole, Order, PictureMarks, Place, PromptFormat, SystemTurn

ONE = PromptFormat(
    name="one",
    roles=ByRole("U", "A"),
    after_role=": ",
    ends=ByRole("\n", "\n"),
    before_answer=":",
    join="\n",
    order=Order.ALTERNATING,
    picture=PictureMarks("<i>", "<r>", "</i>", Place.FRONT, most=1, first_question=True, reserved=("<i>", "</i>")),
)
FREE = replace(
    ONE,
    order=Order.FREE,
    other_role="[{role}]",
    system=SystemTurn("[system]", "\n"),
    picture=PictureMarks("<i>", "<r>", "</i>", Place.INLINE, any_role=True),
)
STAND_IN = replace(ONE, picture=replace(ONE.picture, reserved=(), stands_for="<image>"))
USER_FIRST = replace(
    ONE, order=Order.USER_FIRST, system=SystemTurn("S", "\n"), picture=replace(FREE.picture, any_role=False)
)


def user(text: str = "q", *images: int) -> Message:
    return Message("user", text, images)


ANSWER, SYSTEM = Message("assistant", "a"), Message("system", "s")


@pytest.mark.parametrize(
    ("form", "messages", "told", "next_step"),
    [
        (ONE, [], "no turn", "ask something"),
        (ONE, [SYSTEM, user()], "turn 1 is a system turn", "first question"),
        (USER_FIRST, [user(), SYSTEM, user()], "turn 2 is a system turn", "first question"),
        (ONE, [ANSWER, user()], "turn 1 is not the user's", "/reset"),
        (USER_FIRST, [SYSTEM, ANSWER], "turn 2 is not the user's", "/reset"),
        (USER_FIRST, [SYSTEM], "turn 2 is not the user's", "question"),
        (ONE, [user(), user()], "turn 2 is the user's, like the one before it", "/reset"),
        (ONE, [user(), ANSWER, ANSWER, user()], "turn 3 is the assistant's", "/reset"),
        (ONE, [user(), ANSWER], "turn 2, the last, is the assistant's", "add a question"),
        (ONE, [user(), Message("tool", "x")], "turn 2 has the role 'tool'", "correct the role"),
        (FREE, [user(), Message("two words", "x")], "turn 2 has the role 'two words'", "correct the role"),
        (ONE, [user("what is <i>?")], "turn 1 (user) holds <i>", "< i>"),
        (STAND_IN, [user("<image> or <image>?", 0)], "turn 1 holds <image> 2 times", "all but one"),
        (ONE, [user("q", 0, 1)], "turn 1 brings picture number 2", "/reset"),
        (ONE, [user("q", 0), ANSWER, user("q", 1)], "turn 3 brings picture number 2", "/reset"),
        (ONE, [user(), ANSWER, user("q", 0)], "turn 3 brings a picture, and turn 1", "/reset"),
        (USER_FIRST, [user(), Message("assistant", "a", (0,))], "turn 2 (assistant) brings a picture", "with a question"),
        (FREE, [user("q", 1, 0)], "2 pictures placed in the conversation, as [1, 0]", "in the turn that it belongs to"),
        (FREE, [user("q", 0), user("q", 0)], "as [0, 0]", "in the turn that it belongs to"),
        (ONE, [Message("user", None)], "turn 1 (user) has a part that is neither text nor picture", 'write ""'),  # type: ignore[arg-type]
    ],
)
def test_a_conversation_without_a_form_is_refused(
    form: PromptFormat, messages: list[Message], told: str, next_step: str
) -> None:
    given = max((index + 1 for message in messages for index in message.images), default=0)
    with pytest.raises(UsageError) as refusal:
        check(form, messages, given)
    assert told in refusal.value.what
    assert next_step in refusal.value.next_step


def test_an_error_is_no_longer_than_one_reads() -> None:
    with pytest.raises(UsageError, match=r"like the one before it: the conversation's roles are a list of 9999") as refused:
        check(ONE, [user()] * 9999, 0)
    assert len(str(refused.value)) < 1000


def test_a_picture_that_no_turn_names_is_not_forgotten() -> None:
    with pytest.raises(UsageError, match=r"0 pictures placed .*; 1 given"):
        check(FREE, [user()], 1)


@pytest.mark.parametrize(
    ("form", "messages", "given"),
    [
        (ONE, [user("q", 0), ANSWER, user()], 1),
        (ONE, [user(""), Message("assistant", ""), user("")], 0),
        (STAND_IN, [user("<image>?", 0), ANSWER, user("<image> or <image>?")], 1),
        (STAND_IN, [user("<image> or <image>?")], 0),
        (USER_FIRST, [SYSTEM, user("q", 0, 1), user("q", 2), ANSWER], 3),
        (FREE, [ANSWER, SYSTEM, Message("tool", "x", (0,)), user("<i>")], 1),
    ],
)
def test_a_conversation_with_a_form_goes_through(form: PromptFormat, messages: list[Message], given: int) -> None:
    check(form, messages, given)
