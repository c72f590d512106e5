"""The Chromium of this machine, and the flags with which every headless one is started here."""

from __future__ import annotations

import shutil

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
