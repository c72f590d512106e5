"""Gathers what a report shows beside the verdicts: answers, similarity, errors inside stages, costs of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parity_tests.check.answers import answer, similarity
from parity_tests.judging.probes import Question, Recording
from parity_tests.judging.run_details import Answer, Details, LayerCost, Similarity, StageError
from parity_tests.localize.layer_costs import layer_costs
from parity_tests.localize.stage_profile import loss_profile, package_profile
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from parity_tests.check.candidate import Candidate
    from parity_tests.reference.reference import TorchBackend


def waivers(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(name, meaning) of every waiver of a manifest."""
    return tuple((str(row["name"]), str(row["meaning"])) for row in manifest.get("waivers") or ())


def answer_pairs(
    candidate: Candidate, asked: Sequence[Question], answers: Sequence[tuple[Recording, Recording]]
) -> list[tuple[Answer, Similarity | None]]:
    """Full precision's and the package's answer to every question as people read them, and how alike they are."""
    generation = candidate.manifest["generation"]
    return [
        (
            answer(question, *pair, candidate.tokenizer, generation),
            similarity(question.name, *pair, generation.get("stop_ids", ())),
        )
        for question, pair in zip(asked, answers, strict=True)
    ]


def collect(
    full: TorchBackend,
    stored: TorchBackend | None,
    exact: Candidate | None,
    candidate: Candidate,
    processor: Processor,
    asked: Sequence[Question],
    answered: Sequence[tuple[Answer, Similarity | None]],
    unmeasured: str = "",
) -> Details:
    """The details of one run.

    Args:
        stored: the reference that holds the package's numbers; None where the package holds the checkpoint's.
        exact: the package computed in float32 throughout, where there is such a thing.
        processor: the checkpoint's.
        asked: what the costs of layers are measured on; the insides of stages on the first of them.
        answered: both sides' answers, and how alike they are, one pair a question.
        unmeasured: why nothing inside stages is measured; "" measures it.
    """
    stages: tuple[StageError, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    note = ""
    if not unmeasured:
        side = (exact or candidate).with_processor(processor)
        name = "package" if stored is None else "implementation"
        stages = package_profile(stored or full, side, asked[0], name)
        side.release()
        if stored is not None:
            stages += loss_profile(full, stored, side, asked[0])
            rows = candidate.assignments()
            layers, note = layer_costs(full, stored, rows, processor, asked, candidate.limits.context)
    return Details(
        tuple(text for text, _ in answered),
        tuple(alike for _, alike in answered if alike is not None),
        stages,
        layers,
        note,
        waivers(candidate.manifest),
        unmeasured,
    )
