"""Packages whose code may run here: told by the hash of their manifest, and remembered as ssh remembers its hosts.

ONNX graphs are data; everything else a package may hold runs as code on this machine when it is opened: MLC libraries are
shared objects, TensorRT engines are programs for the GPU. A package is opened for such a backend only if the SHA-256 of its
manifest, which holds the hash of every file, is trusted: it is in the trust file, or the caller gives it. Code that lies
beside graphs and does what they do, faster, is left alone where it is not trusted. An export enters what it has made. Each
time, the files that are code are compared with the manifest, whatever else is.

The trust file is ``$EDGEPROOF_TRUST``, or ``edgeproof/trusted`` in the user's folder of configurations: a line for every
package, its hash and where it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from runtime_py.backends.record import Ability
from runtime_py.backends.registry import named_paths, runtime_backend
from runtime_py.errors import PackageError, UsageError
from runtime_py.files.json_file import MEGABYTE, read_bytes, shortened
from runtime_py.package import Package
from runtime_py.package.files import sha256

VARIABLE = "EDGEPROOF_TRUST"
ALGORITHM = "sha256:"
LEAST_DIGITS = 16
"""Of a hash given by hand: 64 bits, which nobody meets by trying."""

MAX_BYTES = 4 * MEGABYTE


class Standing(StrEnum):
    """What the trust file says of a package."""

    TRUSTED = "trusted"
    UNKNOWN = "not known here"
    CHANGED = "changed since it was trusted"


def trust_file() -> Path:
    """Where trusted hashes are kept; the file need not exist."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "edgeproof" / "trusted"


def runs_code(package: Package, backend: str | None = None) -> bool:
    """Whether opening a package with a backend, its own by default, runs code that it brings."""
    return not runtime_backend(backend or package.runtime_backend).can(Ability.DATA)


def code_files(manifest: Mapping[str, Any]) -> list[str]:
    """Paths of the package's files that are code, for this machine or a phone."""
    return list(named_paths(manifest).code)


def standing(package: Package) -> Standing:
    """What the trust file says of a package."""
    rows = _rows()
    if package.fingerprint in rows:
        return Standing.TRUSTED
    return Standing.CHANGED if str(package.folder.resolve()) in rows.values() else Standing.UNKNOWN


def require(package: Package, backend: str | None = None, given: str | bool = False) -> None:
    """Refuse to run a package's code unless it is trusted.

    Args:
        backend: the runtime backend that will open it; the package's own when None.
        given: the manifest's SHA-256 as the caller knows it (`expected`), or True for whatever is there. A hash is compared
            whether or not the package holds code.

    Raises:
        PackageError: the hash is another one, or code would run that nobody trusts, or that is not what the manifest hashed.
    """
    require_known(package, backend, given)
    if runs_code(package, backend):
        _compare_code(package, code_files(package.manifest))


def require_known(package: Package, backend: str | None = None, given: str | bool = False) -> None:
    """The part of `require` that the manifest alone decides: the package's other files are still to come, or every one of
    them is compared with it next.
    """
    if isinstance(given, str):
        check(package, given)
    if not runs_code(package, backend):
        return
    trusted_as = Standing.TRUSTED if given else standing(package)
    if trusted_as is Standing.TRUSTED:
        return
    files = ", ".join(code_files(package.manifest)) or f"what the backend {package.runtime_backend} runs"
    raise PackageError(
        f"{package.folder} brings code that would run on this machine ({files}) and is {trusted_as}",
        f"a package that was exported here or is trusted; its manifest is {ALGORITHM}{package.fingerprint}",
        f"compare this hash with the one its maker published, then give it once as --trust {ALGORITHM}HASH",
    )


def code_beside(package: Package, backend: str | None = None) -> list[str]:
    """Paths of the code that lies beside the data which a backend, the package's own by default, runs."""
    record = runtime_backend(backend or package.runtime_backend)
    return list(record.paths(record.block(package.manifest)).code) if record.can(Ability.DATA) else []


def code_allowed(package: Package, backend: str | None = None, given: str | bool = False) -> bool:
    """Whether `code_beside` may run: the package is trusted, and these files are what its manifest hashed.

    Args:
        given: as `require` takes it.

    Raises:
        PackageError: it is trusted, and a file of it is another one.
    """
    code = code_beside(package, backend)
    if not code or not (given or standing(package) is Standing.TRUSTED):
        return False
    _compare_code(package, code)
    return True


def _compare_code(package: Package, files: Iterable[str]) -> None:
    """Compare files that are code with the manifest, whatever of the package is compared beside."""
    code = set(files)
    for row in package.files:
        if row.path in code and sha256(package.file(row.path)) != row.sha256:
            raise PackageError(
                f"{package.folder}: {row.path} is not the file of the trusted manifest",
                f"SHA-256 {row.sha256}",
                "do not run this package; copy it again",
            )


def check(package: Package, given: str) -> None:
    """Compare a package with the hash of its manifest that somebody gives.

    Raises:
        UsageError: it is no such hash; PackageError: it is another package's.
    """
    wanted = expected(given)
    if not package.fingerprint.startswith(wanted):
        raise PackageError(
            f"{package.folder} is not the package with the manifest {ALGORITHM}{wanted}",
            f"that one; found {ALGORITHM}{package.fingerprint}",
            "do not use this package before you know why it differs",
        )


def expected(given: str) -> str:
    """The hexadecimal digits of ``sha256:DIGITS`` or ``DIGITS``, the first `LEAST_DIGITS` at least.

    Raises:
        UsageError: it is something else.
    """
    digits = given.strip().lower().removeprefix(ALGORITHM)
    if re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},64}}", digits) is None:
        raise UsageError(
            f"the trusted hash {shortened(given)}",
            f"{ALGORITHM} and the {LEAST_DIGITS} to 64 digits of a manifest's SHA-256",
            "take it from `python -m runtime_py info`, at its maker's",
        )
    return digits


def remember(package: Package) -> Path:
    """Enter a package in the trust file; returns the file. One already there stays once.

    Raises:
        OSError: the file cannot be written.
    """
    path = trust_file()
    if standing(package) is Standing.TRUSTED:
        return path
    place = str(package.folder.resolve()).encode("unicode_escape").decode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{ALGORITHM}{package.fingerprint} {place}\n".encode())
    finally:
        os.close(handle)
    return path


def _rows() -> dict[str, str]:
    """Trusted hashes and the folders that they were trusted in; lines of another form are passed over.

    Raises:
        UsageError: the file is there and cannot be read.
    """
    path = trust_file()
    if not path.exists():
        return {}
    text = read_bytes(path, MAX_BYTES, UsageError, "mend or remove the trust file").decode("utf-8", "replace")
    rows = {}
    for line in text.splitlines():
        digest, _, place = line.partition(" ")
        if re.fullmatch(rf"{ALGORITHM}[0-9a-f]{{64}}", digest):
            rows[digest.removeprefix(ALGORITHM)] = place.encode("ascii", "replace").decode("unicode_escape", "replace")
    return rows
