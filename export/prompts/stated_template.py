"""A checkpoint's own chat template against the prompt that a package has, where the published code applies a template.

A package says the published prompt of its family. A fine-tune may come with another template (no system sentence, other
marks): a package of it would ask in other words than the model was trained on, and nobody would know. So the difference is
said. Templates lie in processor_config.json, chat_template.json, chat_template.jinja or tokenizer_config.json, looked for in
this order (transformers 5.24, processing_utils.py, ``get_processor_dict``); under a key there may be several by name, of
which ``default`` counts.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.families.config.documents import read_optional
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import read_bytes
from runtime_py.preprocess.base import Message
from runtime_py.prompt.format import Place, PromptFormat
from runtime_py.prompt.render import picture_text, render
from runtime_py.vocabulary.added_tokens import roles

JINJA, KEY, TURNS = "chat_template.jinja", "chat_template", "turns"
PLACES = ("processor_config.json", "chat_template.json", JINJA, "tokenizer_config.json")

MOST_BYTES = 1 << 20
SECONDS = 30.0
"""By the clock, where the machine is busy; the process's own limit of processor time is shorter."""

SHOWN = 60
"""Characters of either text that a difference shows."""

CHILD = Path(__file__).with_name("render_process.py")

log = logging.getLogger(__name__)


def check_template(form: PromptFormat, folder: Path, makes: str) -> tuple[str, ...]:
    """What is to be known of a checkpoint's template: that it writes another prompt, or cannot be compared.

    Args:
        makes: what the published code leaves to it (`export.families.published.Registration.template`).

    Raises:
        CheckpointError: a file that is no JSON object, or too large.
    """
    found = stated_template(folder)
    if found is None:
        return ()
    name, template = found
    talks = _talks(form, makes == TURNS)
    asked = [_rows(talk, listed) for listed in (False, True) for talk in talks]
    theirs = _rendered(template, asked, roles(folder)) or []
    as_text, as_parts = theirs[: len(talks)], theirs[len(talks) :]
    if all(text is not None for text in as_parts) and not _differences(form, talks, as_parts):
        as_text = as_parts  # published code that hands over lists of parts alone has a template for nothing else
    if not any(as_text):
        return (f"the template in {name} cannot be rendered; the package has the published prompt of its family",)
    told = _differences(form, talks, as_text)
    return tuple(
        f"the template in {name} writes another prompt than the published one, which the package has: {difference}"
        for difference in told[:1]
    )


def stated_template(folder: Path) -> tuple[str, str] | None:
    """The file that holds a folder's template, and the template; None where there is none."""
    for name in PLACES:
        text = _text_of(folder / name) if name == JINJA else _default(read_optional(folder / name).get(KEY))
        if text is not None:
            return name, text
    return None


def _text_of(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    return read_bytes(path, MOST_BYTES, CheckpointError, "restore the file").decode("utf-8-sig", errors="replace")


def _default(value: object) -> str | None:
    """One template, or the default one of several: a list of names and templates, or an object of them."""
    if isinstance(value, list):
        rows = [row for row in value if isinstance(row, Mapping)]
        value = next((row.get("template") for row in rows if row.get("name") == "default"), None)
    elif isinstance(value, Mapping):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _talks(form: PromptFormat, instructed: bool) -> list[list[Message]]:
    """Conversations in which a template can differ: one turn, three turns, instructions, and a picture among text where the
    template itself writes its marks; only such as have instructions where the code puts them in front.
    """
    one = Message("user", "One?")
    said = [Message("system", "Be brief.")]
    talks = [[one], [one, Message("assistant", "1"), Message("user", "Two?")]]
    if instructed:
        return [[*said, *talk] for talk in talks]
    talks += [[*said, one]] if form.system is not None else []
    marked = form.picture.place is Place.INLINE and not form.join
    return [*talks, [Message("user", "One?", (0,), (0, "One?"))]] if marked else talks


def _rows(talk: list[Message], listed: bool) -> list[dict[str, Any]]:
    """A conversation as templates take it: a content is a text where no picture is, or every one is a list of parts."""

    def content(turn: Message) -> object:
        kinds = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content()]
        return kinds if turn.images or listed else turn.text

    return [{"role": turn.role, "content": content(turn)} for turn in talk]


def _differences(form: PromptFormat, talks: list[list[Message]], texts: Sequence[str | None]) -> list[str]:
    """Of the conversations that a template rendered; a picture is its marks with one row, or that row alone, around which a
    processor puts the marks (SmolVLM).
    """
    told = []
    for talk, text in zip(talks, texts, strict=False):
        ours = _text(form, talk, picture_text(form, 1))
        theirs = None if text is None else text.removeprefix(form.begin)
        if theirs not in (None, ours, _text(form, talk, form.picture.row)):
            told.append(_difference(ours, str(theirs)))
    return told


def _text(form: PromptFormat, talk: list[Message], picture: str) -> str:
    """The prompt behind its begin mark, with a text for the picture."""
    return "".join(str(run) for run in render(form, talk, {0: [picture]} if talk[-1].images else {}))


def _rendered(template: str, talks: list[list[dict[str, Any]]], words: Mapping[str, str]) -> list[str | None] | None:
    """None where the template does not compile, takes too long, or this Python has no jinja2."""
    asked = json.dumps({"template": template, "talks": talks, "words": dict(words)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(CHILD)], input=asked, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        texts: list[str | None] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("the template was not rendered: %s", error)
        return None
    return texts


def _difference(ours: str, theirs: str) -> str:
    """Both texts from the line in which they begin to differ."""
    place = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
    start = ours.rfind("\n", 0, place) + 1
    return f"{theirs[start : start + SHOWN]!r} in place of {ours[start : start + SHOWN]!r}"
