"""What a package's files hold against what its checkpoint, codes and record give: a fault may hardly show in answers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.specs import ModelSpec
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind
from parity_tests.judging.probes import Question
from parity_tests.judging.results import Comparison, Divergence, Measurement
from parity_tests.localize.localize import run_stage, stage_calls
from parity_tests.reference.checkpoint_side import Checkpoint

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

NAME, CODE, GRAPH = "files", "library", "graph"
BLOCK = re.compile(r"(?:layers|blocks)\.\d+")


def other_numbers(candidate: Candidate, checkpoint: Checkpoint) -> tuple[Comparison, Divergence] | None:
    """A failed comparison of the files, and the first place in it; None where all numbers are right, or nobody can say."""
    wrong = candidate.examiner.other_parameters(candidate, checkpoint)
    if not wrong:
        return None
    stage, _, path = wrong[0].partition(".")
    inside = BLOCK.match(path)
    block = inside[0] if inside else path.rpartition(".")[0]
    part = path.removeprefix(f"{block}.")
    measurement = Measurement("weight files", stage, Kind.EXACT, (len(wrong),), {"mismatches": float(len(wrong))})
    standard = candidate.implementation_standard()
    compared = Comparison(NAME, standard, "what an export writes", candidate.name, (measurement,))
    names = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    note = f"inside it the first is {part}: the files hold other numbers than the checkpoint and its codes give, in {names}"
    return compared, Divergence(stage, block, note=note)


def other_code(
    candidate: Candidate, spec: ModelSpec, reference: TorchBackend, question: Question
) -> tuple[Comparison, Divergence] | None:
    """A failed comparison of the first stage whose library says other bits than one compiled anew from the package's record.

    Both are fed the reference's inputs and hold the package's numbers, in the same arithmetic: no rounding lies between.

    Raises:
        MachineError: what compiles it is not here.
    """
    with tempfile.TemporaryDirectory(prefix="edgeproof-library-") as scratch:
        backend = candidate.examiner.built_anew(candidate, spec, Path(scratch) / "library.so")
        if backend is None:
            return None
        anew = replace(candidate, backend=backend)
        try:
            for stage, call in stage_calls(reference, candidate, question).items():
                own, expected = (run_stage(side, stage, call.inputs) for side in (candidate, anew))
                other = np.count_nonzero(own != expected) if own.shape == expected.shape else own.size
                if other:
                    return _of_code(candidate, question, stage, int(other), own.size)
        finally:
            backend.close()
    return None


def other_graph(candidate: Candidate, spec: ModelSpec) -> tuple[Comparison, Divergence] | None:
    """A failed comparison of the first stage whose graph is another than one traced anew (`Examiner.other_graph`)."""
    found = candidate.examiner.other_graph(candidate, spec)
    if found is None:
        return None
    stage, note = found
    measurement = Measurement("graph", stage, Kind.EXACT, (1,), {"mismatches": 1.0})
    compared = Comparison(
        GRAPH, candidate.implementation_standard(), "the graph traced anew", candidate.name, (measurement,)
    )
    return compared, Divergence(stage, note=note)


def more_exact(divergence: Divergence, failing: Comparison, found: Sequence[tuple[Comparison, Divergence]]) -> Divergence:
    """Where no block is known, what was found by comparing files: as the failure itself, or in the stage that parts."""
    known = (place for comparison, place in found if comparison is failing or place.stage == divergence.stage)
    return divergence if divergence.block else next(known, divergence)


def _of_code(candidate: Candidate, question: Question, stage: str, other: int, of: int) -> tuple[Comparison, Divergence]:
    measurement = Measurement("library", stage, Kind.EXACT, (of,), {"mismatches": float(other)})
    standard = candidate.implementation_standard()
    compared = Comparison(CODE, standard, "the library compiled anew", candidate.name, (measurement,), question.name)
    note = f"its own library gives {other} of {of} values that one compiled anew from the package's record does not"
    return compared, Divergence(stage, note=note)
