"""What a report's file may be: a new one, an old one, a link, a pipe."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from parity_tests.report.text_file import write


def test_a_file_is_written_whole_and_its_folder_made(tmp_path: Path) -> None:
    for text in ("first, and longer", "second"):
        write(tmp_path / "new" / "report.json", text)
        assert (tmp_path / "new" / "report.json").read_text() == text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "target")
    write(link, "through")
    assert link.is_symlink() and (tmp_path / "target").read_text() == "through"
    os.mkfifo(pipe)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    listener.start()
    write(pipe, "said")
    listener.join(30)
    assert heard == ["said"] and pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]
