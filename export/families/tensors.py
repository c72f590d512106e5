"""The published tensors of a family whose names follow from its spec: rules, and what is stored and not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from export.modules.rules import tied_head
from export.source.tensor_source import TensorSource
from export.source.training_names import renamed
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
        rules = list(self.rules(spec))
        stored = with_embedding(rules, source, spec, self.head)
        return WeightMap(rules, stored, (*self.ignored, *more), tied_head(spec.decoder, self.head))


def with_embedding(rules: Iterable[Rule], source: TensorSource, spec: ModelSpec, head: str) -> TensorSource:
    """A source that has the embedding of a tied model which was saved under the head's name alone.

    safetensors writes tensors that share memory once, under whichever name comes first (``save_model``); transformers 5
    fills the other in (``tie_weights`` in src/transformers/modeling_utils.py).
    """
    (embedding,) = next(rule.sources for rule in rules if rule.target == "embed_tokens.table.weight")
    if not spec.decoder.tied_head or embedding in source.infos:
        return source
    return renamed(source, {head: embedding})
