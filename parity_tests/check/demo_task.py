"""The demo checkpoints' own task: where they lie, and how often a package made from one answers right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity_tests.check.candidate import Candidate, greedy_answer
from parity_tests.judging.accuracy import ALL_FIVE, ASKED, TASK

PREFIX = "demo/"


def demo_checkpoint(manifest: Mapping[str, Any]) -> Path | None:
    """The demo checkpoint a package was made from, or None when it was made from another."""
    from export.source.hub import DEMO_FOLDER

    name = str(manifest["source"]["id"])
    folder = DEMO_FOLDER / name.removeprefix(PREFIX)
    return folder if name.startswith(PREFIX) and folder.is_dir() else None


def task_accuracy(candidate: Candidate, pictures: int) -> dict[str, float] | None:
    """Share of held-out questions answered right, by kind and over the five tasks; None for other packages."""
    if not str(candidate.manifest["source"]["id"]).startswith(PREFIX) or candidate.tokenizer is None:
        return None
    from export.demo.accuracy import held_out, measure
    from export.demo.questions import KINDS
    from export.demo.reference import recipe_of

    recipe = recipe_of(candidate.manifest["family"])
    cases = held_out(pictures, recipe.side, digits=recipe.digits)
    result = measure(lambda picture, text: greedy_answer(candidate, picture, text), cases)
    figures = {f"{TASK}{kind}": result.share((kind,)) for kind in KINDS if any(key[0] == kind for key in result.asked)}
    return {**figures, ALL_FIVE: result.share(), ASKED: float(sum(result.asked.values()))}
