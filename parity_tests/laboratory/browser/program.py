"""The Chromium of this machine, and how every headless one is started and ended here."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from parity_tests.laboratory.process_end import end
from runtime_py.errors import MachineError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
HEADLESS = ("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking")


def installed() -> str | None:
    """Its path, where there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def program() -> str:
    """Its path.

    Raises:
        MachineError: none is installed.
    """
    path = installed()
    if path is None:
        raise MachineError("no Chromium is installed", "one of " + ", ".join(PROGRAMS), "apt install chromium")
    return path


@contextlib.contextmanager
def running(flags: Sequence[str], before: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> Iterator[None]:
    """A headless browser with a profile of its own; both are gone when the context ends.

    Args:
        flags: beside `HEADLESS`; an address to open is one of them.
        before: a command that starts the program and the flags behind it.
        pass_fds: file descriptors that stay open in it.

    Raises:
        MachineError: none is installed.
    """
    name = program()
    # a browser that has ended may still have children who write into its profile
    with tempfile.TemporaryDirectory(prefix="edgeproof-browser-", ignore_cleanup_errors=True) as profile:
        command = [*before, name, *HEADLESS, f"--user-data-dir={profile}", *flags]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, pass_fds=pass_fds, stdout=quiet, stderr=quiet) as browser:
            try:
                yield
            finally:
                end(browser)
