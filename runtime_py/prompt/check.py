"""What a model's prompt cannot hold, refused before anything runs, with the turn and what to do in the error."""

from __future__ import annotations

import re
from collections.abc import Sequence

from runtime_py.errors import UsageError
from runtime_py.files.json_file import shortened
from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import Order, PromptFormat

SYSTEM = "system"
RESET = "leave the turn out, or start a new conversation (/reset in chat)"
ROLES_LENGTH = 120
"""Characters of the roles of eight turns; of more, and a request may have a hundred thousand, their number is told."""
_ROLE = re.compile(r"[A-Za-z0-9_-]+")


def check(form: PromptFormat, messages: Sequence[Message], given: int) -> None:
    """Raise UsageError unless the conversation is one that the published prompt has a form for.

    Args:
        given: pictures that belong to the conversation; every one must stand in a turn.
    """
    if not messages:
        raise UsageError("the conversation's roles are []: it has no turn", "at least one question", "ask something")
    for number, message in enumerate(messages, 1):
        _check_content(message, number)
        _check_role(form, message, number)
        _check_words(form, message, number)
    _check_order(form, messages)
    _check_pictures(form, messages, given)


def _check_content(message: Message, number: int) -> None:
    parts = message.content()
    if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
        raise UsageError(
            f"turn {number} ({message.role}) has a part that is neither text nor picture: {list(parts)}",
            "texts, and indices of pictures",
            'write "" for an empty turn, or leave the turn out',
        )


def _check_role(form: PromptFormat, message: Message, number: int) -> None:
    role = message.role
    if role == SYSTEM and (form.system is None or (number > 1 and form.order is not Order.FREE)):
        known = "no system turn" if form.system is None else "a system turn in front of all others"
        raise UsageError(
            f"turn {number} is a system turn, among the conversation's roles",
            f"this model knows {known}; roles are user and assistant",
            "put the instructions into the first question",
        )
    if role in (SYSTEM, "user", "assistant") or (form.other_role and _ROLE.fullmatch(str(role))):
        return
    names = "user, assistant" if form.system is None else "system, user, assistant"
    raise UsageError(
        f"turn {number} has the role {role!r}, among the conversation's roles",
        f"one of {names}" + (", or another name of letters and digits" if form.other_role else ""),
        "correct the role",
    )


def _check_words(form: PromptFormat, message: Message, number: int) -> None:
    for text in (part for part in message.content() if isinstance(part, str)):
        word = next((word for word in form.picture.reserved if word in text), None)
        if word is not None:
            raise UsageError(
                f"the text of turn {number} ({message.role}) holds {word}, which this model reads as part of a picture",
                f"text without {', '.join(form.picture.reserved)}",
                f"write it otherwise, e.g. '{word[0]} {word[1:]}'; in chat, /reset forgets a turn that cannot be changed",
            )


def _check_order(form: PromptFormat, messages: Sequence[Message]) -> None:
    if form.order is Order.FREE:
        return
    first = 2 if messages[0].role == SYSTEM else 1
    turns = messages[first - 1 :]
    roles = shortened([message.role for message in messages], ROLES_LENGTH)
    if not turns or turns[0].role != "user":
        raise UsageError(
            f"turn {first} is not the user's: the conversation's roles are {roles}",
            "the user first",
            f"put a question in front; {RESET}",
        )
    if form.order is not Order.ALTERNATING:
        return
    for place, turn in enumerate(turns):
        if turn.role != ("assistant" if place % 2 else "user"):
            raise UsageError(
                f"turn {first + place} is the {turn.role}'s, like the one before it: the conversation's roles are {roles}",
                "user and assistant in turn",
                f"join the two turns; or {RESET}",
            )
    if turns[-1].role != "user":
        raise UsageError(
            f"turn {len(messages)}, the last, is the assistant's: the conversation's roles are {roles}",
            "a question of the user at the end",
            "add a question, or leave the last turn out",
        )


def _check_pictures(form: PromptFormat, messages: Sequence[Message], given: int) -> None:
    marks, takes = form.picture, _takes(form)
    first = next((number for number, message in enumerate(messages, 1) if message.role == "user"), 0)
    placed: list[int] = []
    for number, message in enumerate(messages, 1):
        brought = [part for part in message.content() if not isinstance(part, str)]
        placed += brought
        if brought and message.role != "user" and not marks.any_role:
            raise UsageError(
                f"turn {number} ({message.role}) brings a picture; pictures placed so far: {placed}",
                f"{takes}, in turns of the user alone",
                "give the picture with a question",
            )
        if marks.most and brought and len(placed) > marks.most:
            raise UsageError(
                f"turn {number} brings picture number {len(placed)} of the conversation",
                takes,
                "ask about one picture at a time, each in a conversation of its own (/reset in chat)",
            )
        if brought and marks.first_question and number != first:
            raise UsageError(
                f"turn {number} brings a picture, and turn {first} asked the first question without",
                takes,
                "give the picture with the first question of a new conversation (/reset in chat)",
            )
    if marks.stands_for and first and any(not isinstance(part, str) for part in messages[first - 1].content()):
        _check_stand_in(marks.stands_for, messages[first - 1], first)
    if placed != list(range(given)):
        raise UsageError(
            f"{len(placed)} pictures placed in the conversation, as {placed}; {given} given",
            takes,
            "name each picture in the turn that it belongs to",
        )


def _check_stand_in(mark: str, message: Message, number: int) -> None:
    count = sum(part.count(mark) for part in message.content() if isinstance(part, str))
    if count > 1:
        raise UsageError(
            f"the text of turn {number} holds {mark} {count} times, the place of the conversation's one picture",
            f"{mark} once, or not at all",
            "leave out all but one",
        )


def _takes(form: PromptFormat) -> str:
    if form.picture.most == 1:
        return "one picture" + (", with the first question" if form.picture.first_question else " in a conversation")
    return "every picture once and in order"
