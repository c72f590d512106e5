"""What every checkpoint reader offers: a catalogue of tensors, and any rows of any of them, without reading the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. ``dtype`` is ``float32``, ``float16``, ``bfloat16``, ``int64``, ...; ``nbytes`` are those of its values.

    Attributes:
        file: holds it.
        beside: every file that holds more of what it is made of, as a quantised matrix's scales.
        rounded_to: what its values were rounded to before they were stored, ``nf4``, ``fp4`` or ``int8``; "" for none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    nbytes: int
    beside: tuple[Path, ...] = ()
    rounded_to: str = ""


class TensorSource(Protocol):
    """A checkpoint on disk, opened; readers never map whole files, so that resident memory stays what was asked for."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """All stored tensors by published name, in file order."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of axis 0 (the whole tensor by default) in the stored dtype, freshly allocated."""
        ...


class EmptySource:
    """A source with no tensors: enough to derive a spec and its rules from a config alone."""

    infos: Mapping[str, TensorInfo] = {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        raise CheckpointError(f"tensor {name} is not here", "a checkpoint with weights", "name one with --weights")
