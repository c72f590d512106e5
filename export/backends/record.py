"""One record per backend: everything that shared code asks of it by something else than its name.

A backend is registered in one place (`export.backends.registry`). Its runtime half (`runtime_py.backends.record`) says what
it is called and what its runtime can do; the rest is here: what it stores, which flags it understands, who builds its
files and predicts their sizes, and which files it adds for a target's own software.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from export.quantisation.spec import Storage
from runtime_py.backends.record import RuntimeBackend
from targets.base import Target

if TYPE_CHECKING:
    from export.backends.base import Build, ExportBackend
    from export.quantisation.grids import Grid

TargetFiles = Callable[["Build"], list[Path]]
"""Writes files that a target's own software reads beside the backend's (an app's configuration, a server's); returns their
paths relative to the package."""


VISION, COLUMNS = "how the vision encoder is stored", "columns that share an int4 scale"
"""Meanings of options that several backends have."""


@dataclass(frozen=True)
class BackendOption:
    """One choice that a backend leaves to the user.

    Attributes:
        name: its key in `BuildOptions.extra`.
        flag: what chooses it on a command line.
        values: what the backend takes, numbers before words; of booleans the first is the default, and the flag, which has
            no value, the other.
        meaning: what is chosen, for --help.
        precisions: the only precisions at which it means something; () for all.
        alone: it means something only on targets that have no other backend's files.
    """

    name: str
    flag: str
    values: tuple[str | int | bool, ...]
    meaning: str
    precisions: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class Form:
    """What a layer may be held as instead of what the plan says.

    Attributes:
        name: in a file of choices.
        grid: "" for none.
        products: what a layer of this form takes, in products of bytes of its size.
        meaning: one clause for the plan.
    """

    name: str
    storage: Storage
    grid: str
    products: int
    meaning: str


@dataclass(frozen=True)
class Backend:
    """Everything about one backend.

    Attributes:
        runtime: the half that a machine without the exporter reads.
        exporter: makes the object whose steps build the files; imports no library.
        tools: distributions that decide the bytes of its files; a package's manifest has their versions.
        grids: the integer grids it stores.
        wider: storages that it has beside int4, narrow to wide, each with the name of its grid ("" for none), in which
            ``{block}`` stands for the block length of the int4 grid.
        finer: by the grid of a layer, the forms that a choice may give it instead, coarse to fine.
        options: what a user may choose.
        targets: places to run that come with the backend, beside those of the product.
        server_builder: module that builds, on a server's own machine, files that the export left out; run with the package's
            path as ``python -m``. ``server_modules`` are the files it consists of, beside the runtime.
        target_files: target name to what writes the files of that target's own software, once the backend's are there.
    """

    runtime: RuntimeBackend
    exporter: Callable[[], ExportBackend] = field(repr=False)
    tools: tuple[str, ...]
    grids: tuple[Grid, ...] = field(default=(), repr=False)
    wider: Mapping[Storage, str] = field(default_factory=dict)
    finer: Mapping[str, tuple[Form, ...]] = field(default_factory=dict)
    options: tuple[BackendOption, ...] = ()
    targets: tuple[Target, ...] = ()
    server_builder: str = ""
    server_modules: tuple[str, ...] = ()
    target_files: Mapping[str, TargetFiles] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """Of the files: the key of its block in manifest.json."""
        return self.runtime.name

    def option(self, name: str) -> BackendOption | None:
        """The option with this key, or None when the backend does not know it."""
        return next((option for option in self.options if option.name == name), None)
