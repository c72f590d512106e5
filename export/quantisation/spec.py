"""Storages of weights: what each layer's weights become, decided from names, roles and shapes before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Storage(StrEnum):
    """How one parameter is stored in a package."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


def is_int4(precision: str) -> bool:
    """Whether a precision, as a target names it, stores layers in four bits: int4, or a scheme of MLC's like q4f32_1."""
    return precision.startswith(("int4", "q4"))


@dataclass(frozen=True)
class LayerShape:
    """A matrix that may be quantised. ``role`` is decoder, head, vision, connector or embedding."""

    name: str
    role: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Assignment:
    """What a layer becomes and why.

    Attributes:
        grid: name of the grid in export.quantisation.grids for INT4 and INT8, else "".
        reason: one clause for the plan, e.g. ``4304 columns are no multiple of 32``.
        undivided: it is wider than was asked for because no block divides its columns.
        shares: the layer that the package stores once with this one (a tied head, for the embedding); its codes are both's.
    """

    layer: LayerShape
    storage: Storage
    grid: str = ""
    reason: str = ""
    shares: str = ""
    undivided: bool = False
