"""What a package is called on the hub: ``user/name`` or ``user/name@revision``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import UsageError
from runtime_py.files.json_file import shortened

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_FORM = re.compile(rf"(?P<repository>{_REPOSITORY})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_ADDRESS = re.compile(rf"https?:/{{1,2}}[^/]+/(?P<repository>{_REPOSITORY})")
"""A page of the hub; a `Path` has one slash of the two."""


@dataclass(frozen=True)
class Reference:
    """A repository of the hub.

    Attributes:
        repo_id: ``user/name``.
        revision: branch, tag or commit; None for the newest commit of the main branch.
    """

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def reference(path: str | Path) -> Reference | None:
    """The repository that a package's name means; None for what is on this machine and for every other form.

    Raises:
        UsageError: the address of a repository, whose name it tells.
    """
    if not isinstance(path, str | Path):
        return None
    if address := _ADDRESS.match(str(path)):
        raise UsageError(
            f"{shortened(str(path))} is an address",
            "the folder of a package, or USER/NAME on the hub",
            f"name it as {address['repository']}",
        )
    match = _FORM.fullmatch(str(path))
    if match is None or Path(path).exists():
        return None
    return Reference(match["repository"], match["revision"])


def repository(name: str) -> str:
    """A name that something is to be pushed to, checked.

    Raises:
        UsageError: it is not ``user/name``.
    """
    if re.fullmatch(_REPOSITORY, name) is None or "--" in name or ".." in name or name.endswith((".git", ".", "-")):
        raise UsageError(
            f"{shortened(name)} is no name of a repository",
            "USER/NAME: letters, digits, - _ and . with no -- or .. in it",
            "name the repository as the hub shows it",
        )
    return name
