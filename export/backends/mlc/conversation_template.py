"""The phone's conversation template, ``conv_template`` of mlc-chat-config.json, from a family's prompt.

The engine puts together, in this order: the system template with the system message (of all system turns) in place of
``{system_message}``; for every turn its role, ``role_content_sep``, its parts, and ``seps[0]``, or ``seps[1]`` behind an
answer; and the assistant's role with ``role_empty_sep``. Image rows stand between the text parts of a message without any
mark, so an app sends the marks as text (`phone_parts`). Source: mlc-ai/mlc-llm at 79d603f, cpp/json_ffi/conv_template.cc
(``CreatePrompt``) and python/mlc_llm/protocol/conversation_protocol.py, whose keys and order these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from runtime_py.errors import UnsupportedModelError
from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import Place, PromptFormat
from runtime_py.prompt.render import Blocks, after_role, content


class SystemMessage(StrEnum):
    """What the engine makes of a system message."""

    HELD = "held"  # put between the marks of the model's system turn
    AS_SENT = "as-sent"  # put in front as it is: an app sends the whole turn, marks included
    DROPPED = "dropped"  # left out: the model has no system turn


def conversation_template(form: PromptFormat, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The template object, keys in upstream's order."""
    system, roles = form.system, {"user": form.roles.user, "assistant": form.roles.assistant}
    if form.other_role:
        roles["tool"] = form.other_role.replace("{role}", "tool")
    templates = {
        SystemMessage.HELD: f"{system.before}{{system_message}}{system.after}" if system else "",
        SystemMessage.AS_SENT: "{system_message}",
        SystemMessage.DROPPED: "",
    }
    return {
        "name": form.name,
        "system_template": templates[system_message(form)],
        "system_message": system.default if system else "",
        "system_prefix_token_ids": [form.marks[form.begin]] if form.begin in form.marks else None,
        "add_role_after_system_message": True,
        "roles": roles,
        "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
        "messages": [],
        "seps": [form.ends.user] if form.ends.user == form.ends.assistant else [form.ends.user, form.ends.assistant],
        "role_content_sep": form.after_role,
        "role_empty_sep": form.before_answer,
        "stop_str": [],
        "stop_token_ids": list(stop_ids),
        "strip_reasoning_in_history": False,
        "function_string": "",
        "use_function_calling": False,
    }


def system_message(form: PromptFormat) -> SystemMessage:
    """The engine says the system template whether there is a message or not, so marks can stand in it only where the model
    always has a system turn.
    """
    if form.system is None:
        return SystemMessage.DROPPED
    return SystemMessage.HELD if form.system.default else SystemMessage.AS_SENT


def phone_parts(form: PromptFormat, message: Message, first_question: bool = True) -> list[str | int]:
    """The parts of one message as an app sends them: texts, and pictures by their index.

    Raises:
        UnsupportedModelError: the model's pictures stand in front of all turns, where the engine puts none; or its turns
            open otherwise where a picture comes first, and the engine opens all alike.
    """
    pictures = [part for part in message.content() if isinstance(part, int)]
    if pictures and form.picture.place is Place.START:
        raise UnsupportedModelError(
            f"{form.name}: the phone's engine puts a picture inside a turn",
            "a model whose pictures stand there",
            "run the package's functions from an app of your own",
        )
    if after_role(form, message) != form.after_role:
        raise UnsupportedModelError(
            f"{form.name}: the phone's engine puts {form.after_role!r} behind a role, and the model "
            f"{form.picture.after_role!r} where a picture comes first",
            "a message whose text comes first",
            "send the text in front of the picture",
        )
    marks = form.picture
    around = ("", "") if marks.spliced else (marks.before, marks.after)
    blocks: Blocks = {picture: [around[0], [picture], around[1]] for picture in pictures}
    return [run if isinstance(run, str) else run[0] for run in content(form, message, blocks, first_question)]


def picture_message(form: PromptFormat) -> list[str] | None:
    """The parts of a message with one picture, ``{picture}`` and ``{question}`` in them; None where no app can send one.

    The picture comes first, unless the engine would open its turn otherwise than the model has it.
    """
    for parts in ((0, "{question}"), ("{question}", 0)):
        try:
            sent = phone_parts(form, Message("user", "{question}", (0,), parts))
        except UnsupportedModelError:
            continue
        return [part if isinstance(part, str) else "{picture}" for part in sent]
    return None


def prompt_facts(form: PromptFormat) -> dict[str, Any]:
    """What an app of the stock engine must know of this prompt, for the manifest."""
    return {
        "picture_message": picture_message(form),
        "system_message": str(system_message(form)),
        "system_turn": None if form.system is None else f"{form.system.before}{{message}}{form.system.after}",
        "turns": "all" if form.keeps_history else "the last",
        "trims_content": form.trims,
    }
