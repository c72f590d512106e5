"""Where the pages are that messages name as ``docs/NAME.md``: in a checkout, or in the package that a wheel installed."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE.parent / "docs", PACKAGE / "docs")
NAMED = re.compile(r"\bdocs/([\w./-]+\.md)\b")


def folder() -> Path | None:
    """The folder of the pages; None where an installation was made without them."""
    return next((place for place in PLACES if (place / "cli.md").is_file()), None)


def where(text: str) -> list[str]:
    """A line for each page that a message names and that is not found under that name from the working folder."""
    place = folder()
    if place is None:
        return []
    names = dict.fromkeys(NAMED.findall(text))
    return [
        f"docs/{name}: {place / name}" for name in names if (place / name).is_file() and not Path("docs", name).is_file()
    ]
