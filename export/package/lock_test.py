"""One export for one output: the second says so, and a lock that a kill left behind locks nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.package.lock import lock_of, only_one
from runtime_py.errors import UsageError

pytest.importorskip("fcntl")

HOLD = "import sys, time\nfrom pathlib import Path\nfrom export.package.lock import only_one\n" + (
    "with only_one(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_the_second_is_refused_and_a_kill_frees_the_lock(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"another export is writing .*out \(process {holder.pid}\)"), only_one(output):
            pass
        with only_one(tmp_path / "new" / "other"):
            pass
        holder.send_signal(signal.SIGKILL)
    assert lock_of(output).exists()
    with only_one(output):
        assert lock_of(output).read_text() == f"{os.getpid()}\n"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_one(tmp_path / "out"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["text", "link", "pipe", "folder"])
def test_a_users_file_of_that_name_stays(tmp_path: Path, kind: str) -> None:
    path, mine = lock_of(tmp_path / "out"), tmp_path / "mine.txt"
    mine.write_text("mine")
    if kind == "text":
        path.write_text("my notes on locks")
    elif kind == "link":
        path.symlink_to(mine)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((UsageError, OSError)), only_one(tmp_path / "out"):
        pass
    assert os.path.lexists(path) and mine.read_text() == "mine"


def test_many_at_once_take_turns(tmp_path: Path) -> None:
    """Processes that wait for each other's locks to vanish never hold one lock twice."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom export.package.lock import only_one\n"
        "from runtime_py.errors import UsageError\nout, done = Path(sys.argv[1]), 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        with only_one(out):\n"
        "            with open(sys.argv[2], 'x'): pass\n"
        "            Path(sys.argv[2]).unlink()\n"
        "            done += 1\n"
        "    except UsageError:\n"
        "        time.sleep(0.001)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "inside")]
    running = [subprocess.Popen(command) for _ in range(4)]
    deadline = time.monotonic() + 120
    assert [process.wait(max(deadline - time.monotonic(), 1)) for process in running] == [0] * 4
