"""A tower that rounds its layers' inputs, and breaks a limit: held to PyTorch whose tower rounds the same inputs.

Limits of what eight-bit inputs cost a tower are those of trained towers (docs/results/rounding.md). A golden's tower has
random weights and a width of 24, and the same rounding moves some further. What is wanted to know of a package there is that
it rounds as told: a reference that does so differs from it by the order of float32 sums, and by numbers on a boundary
between two codes. So the arrays of tower and connector that break a limit are measured against that one, under the standard
of packages whose reference rounds inputs too, which is the closer one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from parity_tests.check.candidate import Candidate
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.judge import Verdict, judge_comparison
from parity_tests.judging.probes import Recording
from parity_tests.judging.results import Comparison
from parity_tests.judging.standards import Standard, Table
from parity_tests.reference.checkpoint_side import Checkpoint, stored_reference
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import CONNECTOR, VISION

ROUNDED = "reference with the stored numbers, whose tower rounds its inputs"


@dataclass(frozen=True)
class Twin:
    """Where to ask a reference whose tower rounds as a package's does.

    Attributes:
        say: one question's answer by a backend.
        table: of limits; None for the built-in one.
    """

    checkpoint: Checkpoint
    package: Candidate
    say: Callable[[TorchBackend], Recording]
    table: Table | None = None

    def recorded(self) -> Recording | None:
        """Its answer; None where the package's tower rounds nothing a token."""
        arithmetic = self.package.examiner.tower_arithmetic(self.package)
        if arithmetic is None:
            return None
        reference = stored_reference(self.checkpoint, self.package, arithmetic=arithmetic)
        return None if reference is None else self.say(reference)


def held_to_twin(kernels: Comparison, said: Recording, twin: Twin) -> list[Comparison]:
    """The package's comparison, and in one of its own the arrays of tower and connector that break a limit of it."""
    probes = judge_comparison(kernels, twin.checkpoint.spec.family, twin.table).probes
    rows = [row for row in probes if row.measurement.stage in (VISION, CONNECTOR)]
    broken = {row.measurement.probe for row in rows if row.verdict is Verdict.FAIL and row.broken}
    expected = twin.recorded() if broken else None
    if expected is None:
        return [kernels]
    held = tuple(row for row in compare_recordings(expected, said) if row.probe in broken)
    others = tuple(row for row in kernels.measurements if row.probe not in broken)
    rounded = replace(kernels, standard=Standard.STORED_INT8, baseline=ROUNDED, measurements=held)
    return [replace(kernels, measurements=others), rounded]
