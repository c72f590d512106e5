"""Renders a stranger's chat template, in a process of its own: a template may ask for more time and memory than there is.

Reads ``{"template", "talks", "words"}`` from its input, writes a list with a text for each conversation, and null for one
that the template refuses. Environment and globals are those of transformers 5.24, utils/chat_template_utils.py.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, NoReturn

SECONDS, BYTES = 5, 1 << 30
"""Processor time and address space that rendering may take."""


def refuse(message: str) -> NoReturn:
    """``raise_exception`` of a template."""
    import jinja2

    raise jinja2.exceptions.TemplateError(message)


def rendered(template: str, talks: list[list[dict[str, Any]]], words: dict[str, str]) -> list[str | None]:
    """The text of each conversation, ready for the answer."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(template)
    texts: list[str | None] = []
    for talk in talks:
        try:
            texts.append(compiled.render(messages=talk, add_generation_prompt=True, tools=None, documents=None, **words))
        except (jinja2.exceptions.TemplateError, TypeError):
            texts.append(None)
    return texts


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    asked = json.load(sys.stdin)
    json.dump(rendered(asked["template"], asked["talks"], asked["words"]), sys.stdout)


if __name__ == "__main__":
    main()
