"""The demo exports that are compared: family, target, precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime_py.errors import UsageError

FAMILIES = ("minicpm-v", "omnilmm-12b", "cogvlm2", "wemm", "xverse-v", "awaker2.5-vl")
TARGETS = {"cpu": ("int4", "fp16", "fp32"), "android": ("int4",), "desktop-gpu": ("int4",)}
"""Precisions by target; the order is the order of the exports."""


@dataclass(frozen=True)
class Cell:
    """One export of a demo checkpoint."""

    family: str
    target: str
    precision: str

    @property
    def name(self) -> str:
        """Name of the package's folder."""
        return f"{self.family}-{self.target}-{self.precision}"


def cells(families: Sequence[str] = (), targets: Sequence[str] = (), precisions: Sequence[str] = ()) -> list[Cell]:
    """The asked cells; everything for what is left empty.

    Raises:
        UsageError: a name that no cell has, or names that leave no cell.
    """
    every = [Cell(f, t, p) for f in FAMILIES for t, offered in TARGETS.items() for p in offered]
    for flag, given, known in (
        ("--families", families, FAMILIES),
        ("--targets", targets, tuple(TARGETS)),
        ("--precisions", precisions, tuple(dict.fromkeys(cell.precision for cell in every))),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UsageError(f"{flag} {','.join(unknown)}", f"some of {', '.join(known)}", "correct the name")
    chosen = [
        cell
        for cell in every
        if cell.family in (families or FAMILIES)
        and cell.target in (targets or TARGETS)
        and (not precisions or cell.precision in precisions)
    ]
    if not chosen:
        raise UsageError("no export has these names together", "at least one", "leave a flag out")
    return chosen
