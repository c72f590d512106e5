"""Lists of what is wrong with a checkpoint, as an error shows them: the first ones, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py.files.json_file import shortened

MOST = 20
"""Spelled out in one error; the rest are counted."""

MOST_CHARACTERS = 300
"""Of one of them: names come from strangers' files."""


def listed(problems: Sequence[str]) -> str:
    """The lines of a list that go into an error, each on a line of its own after four spaces."""
    lines = [line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 3] + "..." for line in problems[:MOST]]
    more = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
    return "".join(f"\n    {line}" for line in (*lines, *more))


def named(names: Sequence[str]) -> str:
    """The same for names, in one line."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(shortened(name, MOST_CHARACTERS) for name in names[:MOST]) + more
