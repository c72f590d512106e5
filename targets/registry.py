"""Targets by folder scan: a module under targets/ with a ``TARGET`` object is one; a backend from outside may bring more."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from runtime_py.backends.registry import brought_records
from runtime_py.errors import UsageError, did_you_mean
from targets.base import Target

_NO_TARGET = frozenset({"__init__", "__main__", "base", "registry", "devices"})


_registered: dict[str, Target] = {}


def targets() -> dict[str, Target]:
    """All targets by name: the product's own, those that installed backends bring, those registered by hand."""
    brought = [target for record in brought_records() for target in getattr(record, "targets", ())]
    return _own() | {target.name: target for target in brought} | _registered


def register(target: Target) -> None:
    """Make a target known.

    Raises:
        UsageError: there is one of this name.
    """
    if target.name in targets():
        raise UsageError(f"two targets named {target.name}", "a name of its own for each", "rename one")
    _registered[target.name] = target


def withdraw(target: Target) -> None:
    """Forget a registered target."""
    _registered.pop(target.name, None)


@cache
def _own() -> dict[str, Target]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    names = [name for name in names if name not in _NO_TARGET and not name.endswith("_test")]
    records = [importlib.import_module(f"targets.{name}").TARGET for name in names]
    return {target.name: target for target in records}


def target_named(name: str) -> Target:
    """The target with this name (``desktop_gpu`` is accepted for ``desktop-gpu``).

    Raises:
        UsageError: there is no such target.
    """
    target = targets().get(name.replace("_", "-"))
    if target is None:
        raise UsageError(
            f"{name}: there is no such target",
            "one of " + ", ".join(targets()),
            did_you_mean(name, targets(), "run `python -m targets` to see what each one contains and needs"),
        )
    return target
