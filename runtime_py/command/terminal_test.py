"""What is typed or piped becomes lines, and what stands for a path becomes one."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime_py.command.terminal import Piped, path_of, paths_from
from runtime_py.errors import UsageError

READY_SECONDS = 0.3
"""From a prompt that is seen to one that waits: thousands of times what the program takes."""

TYPING = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process
from runtime_py.command.terminal import open_lines
lines = open_lines(sys.stdin, ["/image", "/exit"])
while True:
    try:
        line = lines.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        continue
    print(f"read {line!r}", flush=True)
    if line in (None, "/exit"):
        break
lines.close()
"""


@pytest.mark.slow  # what is typed must meet a prompt that waits: on a busy machine a key comes between two
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are of Unix")
def test_lines_are_edited_completed_and_remembered(tmp_path: Path) -> None:
    """Through a real pseudo-terminal: arrow keys, Tab, Ctrl-C, and the history of an earlier run."""
    history = tmp_path / "edgeproof" / "chat_history"
    first = session(tmp_path, [b"whaat?\x1b[D\x1b[D\x1b[D\x7f\r", b"/im\tx\r", b"half\x03", b"/exit\r"])
    assert "read 'what?'" in first and "read '/image x'" in first and "interrupted" in first
    assert "what?" in history.read_text() and history.stat().st_mode & 0o077 == 0
    assert "read 'what?'" in session(tmp_path, [b"\x1b[A\x1b[A\x1b[A\r", b"\x04"])


def session(state: Path, keys: list[bytes]) -> str:
    """What a program that reads lines prints while somebody types ``keys``, one piece after each prompt."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "INPUTRC": "/dev/null"}
    command = [sys.executable, "-c", TYPING]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=root, start_new_session=True
    ) as running:
        os.close(follower)
        seen, prompts = b"", 0
        try:
            with contextlib.suppress(OSError):  # Linux says so when the other side is closed
                for piece in keys:
                    prompts += 1
                    while seen.count(b"> ") < prompts:
                        seen += arrived(leader)
                    # Python writes the prompt, then waits for keys: a Ctrl-C between the two is heard at the next key
                    time.sleep(READY_SECONDS)
                    os.write(leader, piece)
                while chunk := arrived(leader):
                    seen += chunk
            assert running.wait(10) == 0, seen.decode(errors="replace")
        finally:  # else leaving the block waits for a program that waits for keys
            running.kill()
    os.close(leader)
    return seen.decode(errors="replace")


def arrived(terminal: int) -> bytes:
    """What comes within half a minute."""
    ready, _, _ = select.select([terminal], [], [], 30)
    assert ready, "nothing came"
    return os.read(terminal, 4096)


def test_a_line_in_another_encoding_is_said_and_the_next_one_read() -> None:
    stream = io.TextIOWrapper(io.BytesIO("é\n".encode("latin-1") + "图\n".encode()), "ascii", errors="surrogateescape")
    lines = Piped(stream)
    with pytest.raises(UsageError, match="line 1 of the input is no text"):
        lines.read()
    assert lines.read() == "图"
    assert lines.read() is None


def test_paths_as_terminals_and_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "a picture.png"
    photo.touch()
    monkeypatch.setenv("HOME", str(photo.parent))
    escaped = str(photo).replace(" ", "\\ ")
    for text in (str(photo), f'"{photo}"', f"'{photo}' ", escaped, "~/a picture.png"):
        assert path_of(text) == str(photo)
    assert path_of("it's") == "it's"
    for strange in ("~nobody-here/a.png", "x" * 300, "a\0b", "~" * 300):
        assert path_of(strange) == strange
        assert paths_from(strange) == []
    assert str(photo) in paths_from(str(photo.parent / "a p"))
    assert paths_from("/nowhere/at/all") == []
