"""Which backend runs a package: what a caller may ask for, and opening the one that was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_py import package
from runtime_py.backends.base import Backend
from runtime_py.backends.record import Ability, OpeningChoices
from runtime_py.backends.registry import held_backends, names_with, runtime_backend, runtime_backends
from runtime_py.errors import PackageError, UsageError
from runtime_py.files.json_file import shortened

MOST_THREADS = 1024
"""More than machines have cores. A backend starts what it is told: ONNX Runtime takes minutes for some thousands."""


def asked_backend(backend: str | None, threads: int, providers: Sequence[str] | None) -> str | None:
    """The backend that a caller asks for: the one named, or the one that has providers where those are named; else None.

    Raises:
        UsageError: what cannot choose a backend, whatever the package.
    """
    if backend is not None and not isinstance(backend, str):
        raise UsageError(f"backend {shortened(backend)}", "one of " + ", ".join(runtime_backends()), "choose one of them")
    if backend is not None:
        runtime_backend(backend)
    _check_threads(threads)
    listed = isinstance(providers, list | tuple) and all(isinstance(name, str) for name in providers)
    if providers is not None and not listed:
        raise UsageError(f"providers is {shortened(providers)}", "a list of names", 'for example ["CUDAExecutionProvider"]')
    if providers and backend is None:
        return next((name for name, record in runtime_backends().items() if record.can(Ability.PROVIDERS)), None)
    return backend


def _check_threads(threads: object) -> None:
    if isinstance(threads, bool) or not isinstance(threads, int) or not 0 <= threads <= MOST_THREADS:
        raise UsageError(f"{shortened(threads)} threads", f"0 to {MOST_THREADS}", "correct the number")


def open_backend(
    opened: package.Package,
    backend: str | None = None,
    threads: int = 0,
    providers: Sequence[str] | None = None,
    *,
    own_code: bool = False,
) -> Backend:
    """The backend that runs a package, chosen by the caller or by the manifest.

    Args:
        own_code: whether code of the package may run where data would do too (`runtime_py.package.trust.code_allowed`).
    """
    record = runtime_backend(backend or opened.runtime_backend)
    name = record.runtime_name
    _check_threads(threads)
    if providers and not record.can(Ability.PROVIDERS):
        able = names_with(Ability.PROVIDERS)
        raise UsageError(f"providers {list(providers)} for backend '{name}'", f"backend {able}", "leave them out")
    if threads and not record.can(Ability.THREADS):
        able = names_with(Ability.THREADS)
        raise UsageError(f"{threads} threads for backend '{name}'", f"backend {able}", record.threads_advice)
    if not record.block(opened.manifest):
        held = ", ".join(other.runtime_name for other in held_backends(opened.manifest)) or "none that is known here"
        asked = "the provider" if providers else f"backend '{name}'"
        raise PackageError(
            f"{opened.folder} holds no {record.files}",
            f"one of the backends it was exported for: {held}",
            f"leave {asked} out, or export for a target that has it",
        )
    return record.open(opened.folder, opened.manifest, OpeningChoices(threads, tuple(providers or ()), own_code))
