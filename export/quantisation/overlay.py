"""Weights with factors on their rows and columns: what AWQ changes beside the codes, kept as vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from export.quantisation.codes import WeightProvider
from export.quantisation.folds import Fold

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Overlay:
    """Factors by canonical parameter name: float32 (rows,) and (columns,)."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rows or self.columns)

    def add(self, fold: Fold, factors: Tensor, weights: WeightProvider) -> None:
        """Multiply the fold's layers by ``factors`` (columns,) and divide what feeds them."""
        import torch

        for layer in fold.layers:
            name = f"{layer}.weight"
            self.columns[name] = self.columns[name] * factors if name in self.columns else factors.clone()
        inverse = 1 / fold.source_factors(factors)
        for source in fold.sources:
            count = weights.shape(source.parameter)[0]
            rows = self.rows.setdefault(source.parameter, torch.ones(count))
            rows[source.start : count if source.stop is None else source.stop] *= inverse

    def update(self, other: Overlay) -> None:
        """Take over another overlay's parameters."""
        self.rows.update(other.rows)
        self.columns.update(other.columns)

    def tensors(self) -> dict[str, Tensor]:
        """As a flat mapping for a file; `from_tensors` is its inverse."""
        tensors = {f"{name}:rows": values for name, values in self.rows.items()}
        return tensors | {f"{name}:columns": values for name, values in self.columns.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Overlay:
        made = cls()
        for key, values in tensors.items():
            name, _, axis = key.rpartition(":")
            (made.rows if axis == "rows" else made.columns)[name] = values
        return made


class OverlaidWeights:
    """A WeightProvider that applies an overlay; float32 where a parameter has factors, untouched where it has none."""

    def __init__(self, weights: WeightProvider, overlay: Overlay) -> None:
        self.weights, self.overlay = weights, overlay

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self.rows(target, 0, None)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        values = self.weights.rows(target, start, stop)
        rows, columns = self.overlay.rows.get(target), self.overlay.columns.get(target)
        if rows is not None:
            part = rows[start:stop]
            values = values.float() * (part[:, None] if values.ndim > 1 else part)
        return values if columns is None else values.float() * columns
