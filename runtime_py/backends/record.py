"""What is known about a backend before its library is imported: names, distributions, and what its runtime can do.

This is the runtime's half of a backend's record. `export.backends.record.Backend` holds it and adds what an export must
know, so that one registration there serves every part of the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_py.backends.base import Backend


class Ability(StrEnum):
    """What a backend's runtime can do beside running the stages; `runtime_py.backends.base` has the calls."""

    REWIND = "rewind"
    """Shorten a sequence, so that a changed conversation keeps the common part of its cache (`Rewinding`)."""
    SEVERAL_SEQUENCES = "several-sequences"
    """Hold several sequences at a time, each with a cache of its own; else the newest, or those of one batch, are fed."""
    PLANNED_BATCH = "planned-batch"
    """Take a token of each of several sequences in one call, as many as the package was exported for (``--batch``)."""
    BESIDE = "beside"
    """Run stages without a cache in one thread while another feeds the decoder."""
    WITHOUT_DEVICE = "without-device"
    """Run on this machine's processor, whatever device the package is for."""
    THREADS = "threads"
    """Be opened with a number of computing threads."""
    PROVIDERS = "providers"
    """Be opened with a list of execution providers."""
    IN_PIECES = "in-pieces"
    """Answer with a small part of the weights in memory at a time (parity_tests opens it so for large packages)."""
    DATA = "data"
    """Open files that are data: nothing that a package brings runs as code (`runtime_py.package.trust` asks for none)."""
    EXACT_COPY = "exact-copy"
    """Run the same files in float32 throughout, so that chosen roundings can be told from faults."""


@dataclass(frozen=True)
class Distribution:
    """A distribution of the package index.

    Attributes:
        versions: a version specifier, as pyproject.toml has it.
        extra: the extra of edgeproof that installs it.
    """

    name: str
    versions: str
    extra: str

    @property
    def lowest(self) -> tuple[int, ...]:
        """The oldest version that serves: (1, 23) of ``>=1.23,<2``."""
        first = self.versions.partition(",")[0].removeprefix(">=")
        return tuple(int(part) for part in first.split("."))


@dataclass(frozen=True)
class OpeningChoices:
    """What a user may choose when a package is opened.

    Attributes:
        threads: computing threads; 0 leaves it to the backend.
        providers: execution providers, best first; empty for the backend's own choice.
        own_code: whether code of the package may run where data would do too (`runtime_py.package.trust.code_allowed`).
    """

    threads: int = 0
    providers: tuple[str, ...] = ()
    own_code: bool = False


@dataclass(frozen=True)
class NamedPaths:
    """What a backend's block of a manifest names: paths of files and folders inside the package.

    Attributes:
        data: read, and nothing else.
        code: runs on this machine or on the package's device.
        graphs: those of ``data`` that refer to further files (`runtime_py.backends.onnx_files` finds them).
    """

    data: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()


def needs_nothing(_block: Mapping[str, Any]) -> tuple[str, ...]:
    """For a backend whose packages run with its own distributions alone."""
    return ()


def names_no_paths(_block: Mapping[str, Any]) -> NamedPaths:
    """For a backend whose block names none."""
    return NamedPaths()


Opener = Callable[[Path, Mapping[str, Any], OpeningChoices], "Backend"]
"""Opens a package folder with its manifest; imports the backend's library.

Raises MachineError when the library or the device is missing, PackageError when the files do not fit.
"""


@dataclass(frozen=True)
class RuntimeBackend:
    """The runtime's half of a backend's record.

    Attributes:
        name: of the files: the export backend, and the key of its block under ``backends`` in manifest.json.
        runtime_name: of what runs them: the manifest's ``runtime_backend``, and a value of ``--backend``.
        files: what a package holds of it, for people, e.g. ``ONNX graphs``.
        distributions: any one of them runs the files.
        modules: Python modules that the extra of the first of them brings, for making or running the files.
        threads_variable: of the environment, where a process reads its number of threads when `Ability.THREADS` is missing.
        paths: what its block of a manifest names.
        requirements: of a package's block, beside the backend's own distributions: what pip is told.
        gpu_providers: what it is opened with on a server's GPU, where `Ability.PROVIDERS` is there.
    """

    name: str
    runtime_name: str
    files: str
    distributions: tuple[Distribution, ...]
    open: Opener = field(repr=False)
    modules: tuple[str, ...] = ()
    abilities: frozenset[Ability] = frozenset()
    threads_variable: str = ""
    paths: Callable[[Mapping[str, Any]], NamedPaths] = field(default=names_no_paths, repr=False)
    requirements: Callable[[Mapping[str, Any]], tuple[str, ...]] = field(default=needs_nothing, repr=False)
    gpu_providers: tuple[str, ...] = ()

    def can(self, ability: Ability) -> bool:
        return ability in self.abilities

    @property
    def threads_advice(self) -> str:
        """What to do instead of giving a number of threads."""
        variable = self.threads_variable
        return f"set {variable} in the environment" if variable else "leave the number of threads out"

    def block(self, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """This backend's part of a manifest; empty when the package holds none of its files."""
        block: Mapping[str, Any] = manifest.get("backends", {}).get(self.name, {})
        return block
