"""How far a set of weights is from full precision: similarity of logits, and task accuracy where there is a task.

Both figures always, since either alone misleads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from export.quantisation.codes import WeightProvider

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = 256
"""Answer positions whose distributions are compared at a time, in float64."""


@dataclass(frozen=True)
class Score:
    """One set of weights.

    Attributes:
        accuracy: share of held-out questions answered right; None where there is no task.
        cosine: of the logits at answer positions without what all tokens of a row have in common, mean over positions;
            ``worst_cosine`` the least of them.
        kl: mean nats per position from the full-precision distribution, which a few unsure positions can make;
            ``median_kl`` is not moved by those, ``p99_kl`` is exceeded at one position in a hundred.
        agreement: share of positions where the same token comes first.
        changed: questions that were answered right in full precision and are not now, or the other way round; accuracy
            alone hides those that make up for each other.
        answers: a digit per question, 1 where it is answered right; two sets of weights are compared question by question.
        perplexity: of the tokens that follow in the samples, exp of the mean nats each takes; None where nothing follows.
    """

    accuracy: float | None
    cosine: float
    worst_cosine: float
    kl: float
    agreement: float
    median_kl: float = 0.0
    changed: int | None = None
    answers: str = field(default="", repr=False)
    p99_kl: float = 0.0
    perplexity: float | None = None

    def figures(self) -> dict[str, Any]:
        """All but the single answers, for records."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}


class Evaluation(Protocol):
    """Something that scores weights against its checkpoint's own.

    Attributes:
        weights: the checkpoint's, in full precision.
        source: what is asked, for records.
        count: how many pictures or samples.
        has_task: whether scores have an accuracy.
    """

    @property
    def weights(self) -> WeightProvider: ...

    @property
    def source(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def has_task(self) -> bool: ...

    def score(self, weights: WeightProvider) -> Score:
        """Similarity and, where there is a task, accuracy of other weights."""
        ...

    def positions(self, weights: WeightProvider) -> Positions:
        """Similarity of other weights, answer position by answer position."""
        ...


@dataclass(frozen=True)
class Positions:
    """Similarity to full precision at every answer position: float64 ``kl`` and ``cosine``, bool ``same`` first token."""

    kl: Tensor
    cosine: Tensor
    same: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Positions]) -> Positions:
        """One after another."""
        import torch

        columns = zip(*((part.kl, part.cosine, part.same) for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def score(self, accuracy: float | None = None, changed: int | None = None, answers: str = "") -> Score:
        """Means, extremes and medians."""
        return Score(
            accuracy,
            float(self.cosine.mean()),
            float(self.cosine.min()),
            float(self.kl.mean()),
            float(self.same.double().mean()),
            float(self.kl.median()),
            changed,
            answers,
            float(self.kl.quantile(0.99, interpolation="higher")),
        )


def compared(expected: Tensor, actual: Tensor) -> Positions:
    """Logits (positions, vocabulary) against full-precision ones."""
    import torch

    cosines, nats, same = [], [], []
    for wanted, given in zip(expected.split(POSITIONS), actual.split(POSITIONS), strict=True):
        wide, other = wanted.double(), given.double()
        reference, candidate = (side - side.mean(-1, keepdim=True) for side in (wide, other))
        cosines.append(torch.nn.functional.cosine_similarity(reference, candidate, dim=-1))
        log_wide = wide.log_softmax(-1)
        nats.append((log_wide.exp() * (log_wide - other.log_softmax(-1))).sum(-1))
        same.append(wide.argmax(-1) == other.argmax(-1))
    return Positions(torch.cat(nats), torch.cat(cosines), torch.cat(same))


class HalfWeights:
    """A WeightProvider of every parameter rounded to float16."""

    def __init__(self, weights: WeightProvider) -> None:
        self.weights = weights

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self.weights.tensor(target).half().float()

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.weights.rows(target, start, stop).half().float()
