"""What a package's files hold against what its checkpoint and codes give: a fault may hardly show in answers."""

from __future__ import annotations

import re

from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Divergence, Measurement
from parity_tests.reference.checkpoint_side import Checkpoint

NAME = "files"
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
