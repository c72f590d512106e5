"""Text files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from export.package.aside import written_in_place


def write(path: Path, text: str) -> None:
    """Write UTF-8 text through a temporary name, or into the link, pipe or device that is there; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_in_place(path) as written:
        written.write_text(text, encoding="utf-8")
