"""Every backend there is: those of the product, those that installed distributions bring, those registered by hand.

A distribution brings one with an entry point of the group ``edgeproof.backends``, whose value is a record: an
`export.backends.record.Backend`, or its runtime half alone.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cache
from typing import Any

from runtime_py.backends.record import Ability, NamedPaths, RuntimeBackend
from runtime_py.backends.records import BUILT_IN
from runtime_py.errors import MachineError, UsageError

GROUP = "edgeproof.backends"

_registered: dict[str, RuntimeBackend] = {}


def runtime_backends() -> dict[str, RuntimeBackend]:
    """All records by runtime name, the product's own first.

    Raises:
        MachineError: an installed distribution names a backend that cannot be loaded.
        UsageError: two backends have a name in common.
    """
    backends_here: dict[str, RuntimeBackend] = {}
    for record in (*BUILT_IN, *(getattr(brought, "runtime", brought) for brought in brought_records())):
        _add(backends_here, record)
    return backends_here | _registered


def runtime_backend(runtime_name: str) -> RuntimeBackend:
    """The record with this runtime name.

    Raises:
        UsageError: there is none.
    """
    known = runtime_backends()
    if runtime_name not in known:
        raise UsageError(f"backend '{runtime_name}'", "one of " + ", ".join(known), "choose one of them")
    return known[runtime_name]


def held_backends(manifest: Mapping[str, Any]) -> list[RuntimeBackend]:
    """The backends whose files a package holds, in the manifest's order; unknown ones are left out."""
    by_files = {record.name: record for record in runtime_backends().values()}
    return [by_files[name] for name in manifest.get("backends", {}) if name in by_files]


def named_paths(manifest: Mapping[str, Any]) -> NamedPaths:
    """Every path that the blocks of known backends name."""
    named = [record.paths(record.block(manifest)) for record in held_backends(manifest)]
    return NamedPaths(
        data=tuple(path for each in named for path in each.data),
        code=tuple(path for each in named for path in each.code),
        graphs=tuple(path for each in named for path in each.graphs),
    )


def names_with(ability: Ability) -> str:
    """Runtime names of the backends with an ability, for a message: ``ort`` or ``ort or other``."""
    return " or ".join(name for name, record in runtime_backends().items() if record.can(ability))


def register(record: RuntimeBackend) -> None:
    """Make a backend known to the runtime; `export.backends.registry.register` does this for a whole record.

    Raises:
        UsageError: another backend has one of its names.
    """
    _add(runtime_backends(), record)
    _registered[record.runtime_name] = record


def _add(known: dict[str, RuntimeBackend], record: RuntimeBackend) -> None:
    for other in known.values():
        if record.name == other.name or record.runtime_name == other.runtime_name:
            raise UsageError(
                f"two backends named '{record.name}' ('{record.runtime_name}')", "names of its own for each", "rename one"
            )
    known[record.runtime_name] = record


def withdraw(record: RuntimeBackend) -> None:
    """Forget a registered backend."""
    _registered.pop(record.runtime_name, None)


@cache
def brought_records() -> tuple[Any, ...]:
    """What installed distributions declare, by entry point name.

    Raises:
        MachineError: one of them cannot be imported, or is no record.
    """
    records = []
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            record = point.load()
            if not isinstance(getattr(record, "runtime", record), RuntimeBackend):
                raise TypeError(f"{record!r} is no record of a backend")
            records.append(record)
        except Exception as error:  # whatever an outside module raises
            where = point.dist.name if point.dist is not None else "an installed distribution"
            raise MachineError(
                f"the backend '{point.name}' of {where} cannot be loaded: {type(error).__name__}: {error}",
                f"a record at {point.value}",
                f"update or uninstall {where}",
            ) from error
    return tuple(records)
