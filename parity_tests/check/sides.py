"""Everyone who answers in the check of a package, and what their answers to one question are compared for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parity_tests.check.ask import Answers, ask_again, ask_all
from parity_tests.check.candidate import Candidate
from parity_tests.check.package_rounding_flip import Gates
from parity_tests.check.rounded_inputs import RoundedQuestion
from parity_tests.judging.compare import compare_recordings
from parity_tests.judging.probes import Question, Recording
from parity_tests.judging.results import Comparison, Divergence
from parity_tests.judging.standards import Standard, Table
from parity_tests.localize.localize import localize
from parity_tests.reference.checkpoint_side import Checkpoint, is_quantised, reference, stored_reference
from parity_tests.reference.streamed import StreamedTorchBackend
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

STORED = "reference with the stored numbers"


@dataclass(frozen=True)
class Sides:
    """Who answers.

    Attributes:
        full: the reference in full precision.
        stored: the reference with the package's own numbers; None where the package holds the checkpoint's.
        exact: the package without the roundings that its kernels choose; None where they choose none.
        processor: the checkpoint's, which asks both references.
    """

    checkpoint: Checkpoint
    processor: Processor
    full: TorchBackend
    stored: TorchBackend | None
    exact: Candidate | None
    package: Candidate

    @property
    def nearest(self) -> TorchBackend:
        """The reference that should say what the package says."""
        return self.stored or self.full

    @property
    def standard(self) -> Standard:
        """How close the package must be to that reference."""
        return self.package.standard() if self.stored is None else self.package.implementation_standard()

    @property
    def streamed(self) -> bool:
        """Whether the reference reads its weights from the checkpoint at every step."""
        return isinstance(self.full, StreamedTorchBackend)

    def comparisons(self, question: Question, answers: Answers, steps: int) -> list[Comparison]:
        """What the answers to one question are compared for.

        A package that holds the checkpoint's numbers is held against full precision. Of any other, what runs it is held
        against the reference with the same numbers (first without chosen roundings, where there are such), and that
        reference against full precision, which is what storing them so costs.
        """
        expected, inside, tight, said = answers
        gates = Gates(self.checkpoint, self.nearest, inside, question, steps, expected.arrays["greedy_ids"])
        if self.stored is None:
            rows = compare_recordings(expected, said)
            standard = self.package.standard()
            compared = Comparison("package", standard, "reference", self.package.name, rows, question.name, said.seconds)
            return gates.settled(compared, self.package)
        name = "implementation" if self.exact is None else "kernels"
        own = _implementation(name, self.package, question, inside, said)
        if self.exact is not None and tight is not None:
            copies = gates.settled(_implementation("implementation", self.exact, question, inside, tight), self.exact)
            asked = RoundedQuestion(
                self.checkpoint, self.processor, self.nearest, self.package, question, steps, inside, said, gates.fed
            )
            comparisons = [*copies, *asked.settled(own, copies)]
        else:
            comparisons = gates.settled(own, self.package)
        cost = Standard.INT4_LOSS if is_quantised(self.package.assignments()) else Standard.FP16
        rows = compare_recordings(expected, inside)
        loss = Comparison("loss", cost, "full-precision reference", STORED, rows, question.name, inside.seconds)
        return [*comparisons, loss]

    def divergence(self, question: Question, table: Table | None) -> Divergence:
        """Where the package first parts from its reference, on one question."""
        side = self.exact or self.package
        divergence = localize(self.nearest, side, question, side.standard(), table, self.processor)
        if self.exact is None or divergence.stage:
            return divergence
        return replace(divergence, note=f"{divergence.note} in float32; what is left comes from the package's own roundings")

    def recordings(self, answers: Sequence[Answers]) -> list[tuple[Recording, Recording]]:
        """Full precision's and the package's answer to every question."""
        return [(expected, said) for expected, _, _, said in answers]


def open_sides(candidate: Candidate, checkpoint: Checkpoint, processor: Processor, device: str) -> Sides:
    """Build the references of a package on ``device``.

    Raises:
        UsageError: the package holds calibrated codes and the calibration is not given.
    """
    return Sides(
        checkpoint=checkpoint,
        processor=processor,
        full=reference(checkpoint.spec, checkpoint.weights, device),
        stored=stored_reference(checkpoint, candidate, device),
        exact=candidate.exact(),
        package=candidate,
    )


def sides_of_other(sides: Sides, other: Candidate) -> Sides:
    """The same with another way of running the package's decoder as if it were its only one (`Examiner.decoders`).

    Where its numbers are not the first one's, there is a reference that holds them.
    """
    if other.assignments() == sides.package.assignments():
        return replace(sides, package=other)
    stored = stored_reference(sides.checkpoint, other, str(sides.full.device))
    return replace(sides, stored=stored, exact=other.exact(), package=other)


def other_comparisons(
    name: str, its: Sides, asked: list[Question], steps: int, known: Sequence[Answers] = ()
) -> list[Comparison]:
    """What it says to the same questions, compared.

    Args:
        name: what its comparisons are called.
        known: answers of everyone to these questions, where all but the package are who they were.
    """
    if known:
        answers = ask_again(its.package, asked, known, steps)
    else:
        answers = ask_all(its.full, its.stored, its.exact, its.package, its.processor, asked, steps)
    compared = [each for q, said in zip(asked, answers, strict=True) for each in its.comparisons(q, said, steps)]
    its.package.release()
    # what only the references and the exact copy say has been told of the first
    told = [each for each in compared if not known or each.name not in _of_others(its)]
    return [replace(each, decoder=name) for each in told]


def _of_others(its: Sides) -> tuple[str, ...]:
    """Comparisons in which the package itself has no part."""
    return ("loss",) if its.exact is None else ("loss", "implementation")


def _implementation(name: str, side: Candidate, question: Question, inside: Recording, said: Recording) -> Comparison:
    rows = compare_recordings(inside, said)
    return Comparison(name, side.implementation_standard(), STORED, side.name, rows, question.name, said.seconds)
