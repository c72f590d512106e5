"""``chat_template.jinja`` of a package: a family's prompt in the form that transformers and its relatives read.

A picture is written as its marks with one placeholder, as chat templates of the field do; whoever prepares the picture puts
as many in its place as it has rows. Text and ids are those of the package's own processor otherwise. Messages are
``{"role", "content"}`` with text or a list of ``{"type": "text", "text"}``, ``{"type": "image"}`` and ``{"type": "video"}``.
"""

from __future__ import annotations

from pathlib import Path

from export.package.aside import written_aside
from runtime_py.prompt.format import Order, Place, PromptFormat, SystemTurn
from runtime_py.prompt.render import picture_text

FILE = "chat_template.jinja"
"""The name under which transformers looks for it (utils/hub.py, ``CHAT_TEMPLATE_FILE``)."""


def chat_template(form: PromptFormat) -> str:
    """The template's text."""
    picture = form.picture.row if form.picture.spliced else picture_text(form, 1)
    lines = [
        "{%- set seen = namespace(pictures=0) -%}",
        *_content_macro(form, picture),
        *_count(form),
        *([f"{{{{- {_quoted(form.begin)} -}}}}"] if form.begin else []),
        *_start(form, picture),
        *_system(form),
        *_turns(form, picture),
        *_answer(form),
    ]
    return "\n".join(lines) + "\n"


def write_chat_template(form: PromptFormat, folder: Path) -> list[Path]:
    """Write it into a package; returns its path there."""
    with written_aside(folder / FILE) as aside:
        aside.write_text(chat_template(form), encoding="utf-8", newline="\n")
    return [Path(FILE)]


def _quoted(text: str) -> str:
    """A text as a string of the template language."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _content_macro(form: PromptFormat, picture: str) -> list[str]:
    """``content(parts)``: the parts of a turn, in the order of the prompt, joined."""
    join = _quoted(form.join)
    head = ["{%- macro content(parts) -%}", "    {%- if parts is string -%}", "        {{- parts -}}", "    {%- else -%}"]
    tail = ["    {%- endif -%}", "{%- endmacro -%}"]
    if form.picture.place is Place.INLINE:
        kinds = [
            "            {%- if part['type'] == 'image' -%}",
            f"                {{{{- {_quoted(picture)} -}}}}",
        ]
        if form.picture.clip_row:
            kinds += [
                "            {%- elif part['type'] == 'video' -%}",
                f"                {{{{- {_quoted(picture_text(form, 1, clip=True))} -}}}}",
            ]
        kinds += ["            {%- else -%}", "                {{- part['text'] -}}", "            {%- endif -%}"]
        joint = [f"            {{{{- '' if loop.first else {join} -}}}}"] if form.join else []
        return [*head, "        {%- for part in parts -%}", *joint, *kinds, "        {%- endfor -%}", *tail]
    pictures = []
    if form.picture.place is Place.FRONT:
        pictures = [
            "        {%- for part in parts if part['type'] == 'image' -%}",
            f"            {{{{- {_quoted(picture + form.join)} -}}}}",
            "        {%- endfor -%}",
        ]
    return [
        *head,
        *pictures,
        "        {%- for part in parts if part['type'] == 'text' -%}",
        f"            {{{{- ('' if loop.first else {join}) ~ part['text'] -}}}}",
        "        {%- endfor -%}",
        *tail,
    ]


def _count(form: PromptFormat) -> list[str]:
    """How many pictures there are, where that decides something."""
    if not form.picture.most and form.picture.place is not Place.START:
        return []
    lines = [
        "{%- for message in messages if message['content'] is not string -%}",
        "    {%- for part in message['content'] if part['type'] != 'text' -%}",
        "        {%- set seen.pictures = seen.pictures + 1 -%}",
        "    {%- endfor -%}",
        "{%- endfor -%}",
    ]
    if form.picture.most:
        told = f"This model takes at most {form.picture.most} picture in a conversation."
        lines += [
            f"{{%- if seen.pictures > {form.picture.most} -%}}",
            f"    {{{{- raise_exception({_quoted(told)}) -}}}}",
            "{%- endif -%}",
        ]
    return lines


def _start(form: PromptFormat, picture: str) -> list[str]:
    if form.picture.place is not Place.START:
        return []
    return ["{%- if seen.pictures -%}", f"    {{{{- {_quoted(picture)} -}}}}", "{%- endif -%}"]


def _system(form: PromptFormat) -> list[str]:
    """The system turn, and ``turns``: the rest."""
    if form.system is None:
        last = "{%- set turns = messages[-1:] -%}"
        return ["{%- set turns = messages -%}" if form.keeps_history else last]
    system: SystemTurn = form.system
    said = "content(messages[0]['content'])" + (" | trim" if form.trims else "")
    lines = [
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        f"    {{{{- {_quoted(system.before)} ~ ({said}) ~ {_quoted(system.after)} -}}}}",
        "    {%- set turns = messages[1:] -%}",
        "{%- else -%}",
    ]
    if system.default:
        lines.append(f"    {{{{- {_quoted(system.before + system.default + system.after)} -}}}}")
    return [*lines, "    {%- set turns = messages -%}", "{%- endif -%}"]


def _turns(form: PromptFormat, picture: str) -> list[str]:
    said = "content(message['content'])" + (" | trim" if form.trims else "")
    after = _after_role(form)
    opening = " ~ ".join([_role(form), *([after] if after else [])])
    return [
        "{%- for message in turns -%}",
        *_order(form),
        f"    {{%- set said = {said} -%}}",
        *_stand_in(form, picture),
        f"    {{{{- {opening} ~ said -}}}}",
        *_end(form),
        "{%- endfor -%}",
    ]


def _after_role(form: PromptFormat) -> str:
    """What stands between the role and the content of ``message``; "" for nothing."""
    special, usual = form.picture.after_role, _quoted(form.after_role) if form.after_role else ""
    if special is None or form.picture.place is Place.START:
        return usual
    parts = "message['content'][:1]" if form.picture.place is Place.INLINE else "message['content']"
    begins = f"message['content'] is not string and {parts} | selectattr('type', 'equalto', 'image') | list"
    return f"({_quoted(special)} if {begins} else {_quoted(form.after_role)})"


def _end(form: PromptFormat) -> list[str]:
    """What closes the turn of ``message``."""
    if not form.ends.user + form.ends.assistant:
        return []
    end = f"{_quoted(form.ends.assistant)} if message['role'] == 'assistant' else {_quoted(form.ends.user)}"
    if form.ends.user == form.ends.assistant:
        end = _quoted(form.ends.user)
    return [f"    {{{{- {end} -}}}}" if form.ends_empty_turns else f"    {{{{- ({end}) if said else '' -}}}}"]


def _role(form: PromptFormat) -> str:
    """What opens the turn of ``message``."""
    if form.other_role:
        before, _, after = form.other_role.partition("{role}")
        return f"{_quoted(before)} ~ message['role']" + (f" ~ {_quoted(after)}" if after else "")
    if form.roles.user == form.roles.assistant:
        return _quoted(form.roles.user)
    return f"({_quoted(form.roles.assistant)} if message['role'] == 'assistant' else {_quoted(form.roles.user)})"


def _order(form: PromptFormat) -> list[str]:
    if form.order is Order.FREE or not form.keeps_history:
        return []
    wrong = "message['role'] not in ['user', 'assistant'] or (loop.first and message['role'] != 'user')"
    told = "Roles are user and assistant, the user first."
    if form.order is Order.ALTERNATING:
        wrong = "message['role'] != ('assistant' if loop.index0 % 2 else 'user')"
        told = "Roles alternate: user, assistant, user, and so on."
    return [
        f"    {{%- if {wrong} -%}}",
        f"        {{{{- raise_exception({_quoted(told)}) -}}}}",
        "    {%- endif -%}",
    ]


def _stand_in(form: PromptFormat, picture: str) -> list[str]:
    """The picture of the first question in place of the text that stands for it."""
    mark = form.picture.stands_for
    if not mark:
        return []
    front = _quoted(picture + form.join)
    return [
        f"    {{%- if loop.first and seen.pictures and {_quoted(mark)} in said -%}}",
        f"        {{%- set said = (said | replace({front}, '', 1)) | replace({_quoted(mark)}, {_quoted(picture)}, 1) -%}}",
        "    {%- endif -%}",
    ]


def _answer(form: PromptFormat) -> list[str]:
    answer = f"{{{{- {_quoted(form.answer)} -}}}}"
    if not form.answer:
        return []
    return [answer] if form.always_asks else ["{%- if add_generation_prompt -%}", f"    {answer}", "{%- endif -%}"]
