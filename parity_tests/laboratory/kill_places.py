"""Run an export that kills itself at a chosen place.

    python -m parity_tests.laboratory.kill_places PLACE [export's flags]

A place is a call of one of the exporter's functions; the process gets SIGKILL before or after it, so nothing is tidied up.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A moment of an export.

    Attributes:
        module, name: the function, ``Class.method`` for a method.
        after: kill after the call; before it otherwise.
        call: which call, counted from 1.
        replacing: only where a package is being replaced (``--force``).
    """

    module: str
    name: str
    after: bool = False
    call: int = 1
    replacing: bool = False


PLACES = {
    "lock held": Place("export.package.disk", "check_output"),
    "folder made": Place("export.package.journal", "Journal.begin"),
    "first journal half written": Place("export.package.aside", "sync_folder"),
    "first step's files written": Place("export.package.journal", "Journal.finish"),
    "second step entered": Place("export.package.journal", "Journal.finish", after=True, call=2),
    "third step's files synced": Place("export.package.journal", "record_file", call=3),
    "side file half copied": Place("export.package.aside", "sync_file"),
    "all steps entered": Place("export.pipeline", "_confirmed"),
    "manifest about to be written": Place("export.pipeline", "write_manifest"),
    "journal set aside": Place("export.package.journal", "Journal.set_aside", after=True),
    "second manifest written": Place("export.pipeline", "write_manifest", after=True, call=2),
    "about to get its name": Place("export.package.disk", "promote"),
    "old package moved": Place("pathlib", "Path.rename", after=True, replacing=True),
    "name given": Place("export.package.disk", "clean_up"),
    "old package removed": Place("export.package.ownership", "remove_package", after=True, replacing=True),
}
"""Places by name, in the order of an export."""


def arm(place: Place) -> None:
    """Make the place deadly for this process."""
    module = importlib.import_module(place.module)
    owner_name, _, attribute = place.name.rpartition(".")
    owner: Any = getattr(module, owner_name) if owner_name else module
    original: Callable[..., Any] = getattr(owner, attribute)
    calls = 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place.call and not place.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        if calls == place.call and place.after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, attribute, deadly)
    for other in list(sys.modules.values()):  # those that imported the function by name
        if not owner_name and getattr(other, "__dict__", {}).get(attribute) is original:
            setattr(other, attribute, deadly)


def main() -> int:
    """Returns the export's exit code, if it comes to that."""
    from export.__main__ import main as export

    importlib.import_module("export.pipeline")
    arm(PLACES[sys.argv[1]])
    return int(export(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
