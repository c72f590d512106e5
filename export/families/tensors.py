"""The published tensors of a family whose names follow from its spec: rules, and what is stored and not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from export.modules.rules import tied_head
from export.source.tensor_source import TensorSource
from export.source.weight_map import Rule, WeightMap
from export.specs import ModelSpec


@dataclass(frozen=True)
class PublishedTensors:
    """How a family stores its parameters.

    Attributes:
        rules: one rule per parameter of all four stages.
        head: name of the language model's head, which must equal the embedding where that is the head.
        ignored: glob patterns of names that are known and not used.
        unread: the same, of names that depend on the spec.
    """

    rules: Callable[[ModelSpec], Iterable[Rule]]
    head: str = "lm_head.weight"
    ignored: tuple[str, ...] = ()
    unread: Callable[[ModelSpec], tuple[str, ...]] | None = None

    def map(self, spec: ModelSpec, source: TensorSource) -> WeightMap:
        """The rules over a checkpoint's tensors."""
        more = () if self.unread is None else self.unread(spec)
        return WeightMap(self.rules(spec), source, (*self.ignored, *more), tied_head(spec.decoder, self.head))
