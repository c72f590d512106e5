"""What a run keeps beside its judged measurements, for people who want to see where and why: answers, blocks, layers.

Nothing here is judged. Every record goes to JSON and back; infinities become strings, because JSON has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What both sides say to one question when left alone.

    Attributes:
        picture: the question's picture as base64 of a PNG, scaled down; "" when there is none.
        size: width and height of the picture as it was asked about.
        reference, candidate: texts up to the first stop token.
        reference_ids, candidate_ids: all greedy tokens, stop tokens included.
        length: tokens of the reference's answer before its stop token; None when the steps asked for cut it off.
        truth: every answer that is right, where that is known.
        reference_scores, candidate_scores: how right each is, by the names of `parity_tests.judging.answer_scores`.
    """

    question: str
    text: str
    picture: str
    size: tuple[int, int]
    reference: str
    candidate: str
    reference_ids: tuple[int, ...]
    candidate_ids: tuple[int, ...]
    length: int | None
    truth: tuple[str, ...] = ()
    reference_scores: Mapping[str, float] = field(default_factory=dict)
    candidate_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Similarity:
    """The package as delivered against full precision, end to end, for one question.

    Positions are those whose next token is read: the prompt's last and every answer step's. Cosines are of logits without
    what all tokens of a row have in common; KL is of full precision against the package, in nats.

    Attributes:
        prompt_cosine: lowest over the prompt's text, which nobody reads but where a loss shows first.
        answer_cosine, mean_cosine: lowest and mean over the positions.
        kl_mean, kl_median, kl_p99, kl_max: over the positions.
        top1_agreement: share of the positions with the same first token.
        equal_tokens: leading equal greedy tokens of ``tokens``.
    """

    question: str
    prompt_cosine: float
    answer_cosine: float
    mean_cosine: float
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    equal_tokens: int
    tokens: int


@dataclass(frozen=True)
class StageError:
    """How far one stage is off when it is fed the reference's own inputs.

    Attributes:
        comparison: ``package``, ``implementation`` or ``loss``, as in the judged comparisons.
        error: largest difference over largest reference value of the stage's output.
        blocks: (block, error) in running order; errors accumulate from block to block.
        note: why something could not be measured.
    """

    comparison: str
    stage: str
    error: float
    blocks: tuple[tuple[str, float], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class LayerCost:
    """What storing one layer as integers costs.

    Attributes:
        form: the storage of its weights, under the key that report.json has for it.
        error: length of the output's error over the output's length, on the full-precision model's own inputs.
        kl: mean KL in nats per position when this layer alone is stored so; None when that was not measured.
    """

    layer: str
    form: str
    grid: str
    error: float
    kl: float | None = None


@dataclass(frozen=True)
class Details:
    """All of it.

    Attributes:
        layers_note: which layers were not measured, and why.
        waivers: (name, meaning) of what the user asked to be let off when the package was made.
        unmeasured: why ``stages`` and ``layers`` are empty, when they are.
    """

    answers: tuple[Answer, ...] = ()
    similarity: tuple[Similarity, ...] = ()
    stages: tuple[StageError, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    layers_note: str = ""
    waivers: tuple[tuple[str, str], ...] = ()
    unmeasured: str = ""

    def costly(self, count: int = 0) -> tuple[LayerCost, ...]:
        """The layers that cost most first, by KL where it was measured, then by output error; 0 gives all."""
        order = sorted(self.layers, key=lambda layer: (-(-1.0 if layer.kl is None else layer.kl), -layer.error))
        return tuple(order[:count] if count else order)


def to_json(details: Details) -> dict[str, Any]:
    """A JSON object with the attributes' names as keys."""
    return _plain(asdict(details))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(value: Mapping[str, Any]) -> Details:
    """The details that `to_json` wrote; KeyError, TypeError or ValueError when it did not."""
    return Details(
        tuple(_answer(row) for row in value["answers"]),
        tuple(_similarity(row) for row in value["similarity"]),
        tuple(
            StageError(row["comparison"], row["stage"], float(row["error"]), _pairs(row["blocks"]), row["note"])
            for row in value["stages"]
        ),
        tuple(
            LayerCost(
                row["layer"], row["form"], row["grid"], float(row["error"]), None if row["kl"] is None else float(row["kl"])
            )
            for row in value["layers"]
        ),
        value["layers_note"],
        tuple((name, meaning) for name, meaning in value["waivers"]),
        value["unmeasured"],
    )


def _pairs(rows: Any) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(error)) for name, error in rows)


def _answer(row: Mapping[str, Any]) -> Answer:
    width, height = row["size"]
    ids = tuple(row["reference_ids"]), tuple(row["candidate_ids"])
    texts = row["question"], row["text"], row["picture"]
    truth, scored = tuple(row["truth"]), (row["reference_scores"], row["candidate_scores"])
    return Answer(*texts, (width, height), row["reference"], row["candidate"], *ids, row["length"], truth, *scored)


def _similarity(row: Mapping[str, Any]) -> Similarity:
    counted = ("question", "equal_tokens", "tokens")
    values: dict[str, Any] = {f.name: row[f.name] if f.name in counted else float(row[f.name]) for f in fields(Similarity)}
    return Similarity(**values)
