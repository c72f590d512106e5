"""Every backend that can be exported for, by the name of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.backends.mlc.record import BACKEND as MLC
from export.backends.onnx.record import BACKEND as ONNX
from export.backends.record import Backend
from export.backends.tensorrt.record import BACKEND as TENSORRT
from runtime_py.backends import registry as runtime_registry
from runtime_py.errors import UsageError
from targets import registry as target_registry

if TYPE_CHECKING:
    from export.quantisation.grids import Grid

BUILT_IN = (ONNX, TENSORRT, MLC)

_registered: dict[str, Backend] = {}


def backends() -> dict[str, Backend]:
    """All records by name: the product's own, those of installed distributions, those registered by hand.

    Raises:
        MachineError, UsageError: see runtime_py.backends.registry.runtime_backends.
    """
    runtime_registry.runtime_backends()
    brought = [record for record in runtime_registry.brought_records() if isinstance(record, Backend)]
    return {record.name: record for record in (*BUILT_IN, *brought, *_registered.values())}


def backend_named(name: str) -> Backend:
    """The record of this name.

    Raises:
        UsageError: there is none, or what is known of it runs its files but does not make them.
    """
    known = backends()
    if name not in known:
        raise UsageError(f"no backend makes files named '{name}'", "one of " + ", ".join(known), "install or correct it")
    return known[name]


def register(backend: Backend) -> None:
    """Make a backend known to every part of the product.

    Raises:
        UsageError: another backend, or another target, has one of its names.
    """
    runtime_registry.register(backend.runtime)
    for target in backend.targets:
        target_registry.register(target)
    _registered[backend.name] = backend


def withdraw(backend: Backend) -> None:
    """Forget a registered backend."""
    _registered.pop(backend.name, None)
    for target in backend.targets:
        target_registry.withdraw(target)
    runtime_registry.withdraw(backend.runtime)


def grids() -> dict[str, Grid]:
    """The integer grids of all backends by name."""
    return {grid.name: grid for backend in backends().values() for grid in backend.grids}
