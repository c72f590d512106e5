"""A model library compiled in a process of its own (`export.compilation.apart`): the request, and how it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.backends.mlc.overview import Overview
from export.backends.mlc.parameters import Parameter
from export.backends.mlc.schemes import Scheme
from export.compilation.apart import Job, call_together
from export.quantisation.spec import Assignment
from export.specs import ModelSpec
from targets.base import Limits

COMPILER = "export.backends.mlc.library:compile_library"


@dataclass(frozen=True)
class LibraryRequest:
    """What to compile.

    Attributes:
        name: model library name; ``_`` for ``-``, at least 8 characters with the ``_`` that ends the prefix.
        parameters: the package's parameter list, which the module must declare exactly.
        blocks: a stage whose block outputs are asked for; the library then has that function and the cache alone.
    """

    name: str
    model_type: str
    spec: ModelSpec
    assignments: Mapping[str, Assignment]
    scheme: Scheme
    limits: Limits
    overview: Overview
    parameters: tuple[Parameter, ...]
    blocks: str = ""


def compile_apart(
    request: LibraryRequest, place: str, out: Path, kernels: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Compile for ``place`` (export.backends.mlc.library.TARGETS) into ``out``; returns the library's metadata.

    Args:
        kernels: see `export.backends.mlc.library.compile_library`.

    Raises:
        EdgeproofError: what the compiling process raised.
        MachineError: the process died.
    """
    return compile_together(request, {place: out}, {place: kernels or {}})[place]


def compile_together(
    request: LibraryRequest, outs: Mapping[str, Path], kernels: Mapping[str, Mapping[str, Path]] | None = None
) -> dict[str, dict[str, Any]]:
    """Compile for every place at once, each in a process of its own; returns the metadata by place.

    Args:
        kernels: by place, see `export.backends.mlc.library.compile_library`.

    When one fails, the others are ended.

    Raises:
        EdgeproofError: what the first of them that failed, in the order of ``outs``, raised; MachineError: it died.
    """
    return call_together(
        {place: Job(COMPILER, (request, place, out, dict((kernels or {}).get(place, {})))) for place, out in outs.items()}
    )
