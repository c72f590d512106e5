"""What a part finds, what is said of it, and what a part is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.judging.judge import Verdict
from parity_tests.judging.metrics import Kind, measure
from parity_tests.judging.standards import Standard, Table
from parity_tests.thresholds import limits

if TYPE_CHECKING:
    from parity_tests.second_opinion.subject import Subject


@dataclass(frozen=True)
class Finding:
    """One array of either side.

    Attributes:
        what: was asked, in few words.
        theirs, ours: equal in shape where both read the checkpoint alike.
    """

    what: str
    kind: Kind
    theirs: np.ndarray
    ours: np.ndarray


@dataclass(frozen=True)
class Opinion:
    """What is said of one finding, or of a part that could not be asked.

    Attributes:
        stage: the first one to blame.
        against: the class of the other library.
        metric, error, limit: the worst figure and its bound; of a part that was not asked, empty and zero.
        why: it failed, or was not run.
    """

    part: str
    stage: str
    against: str
    what: str
    verdict: Verdict
    metric: str = ""
    error: float = 0.0
    limit: float = 0.0
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class NotComparable(Exception):
    """This part cannot be asked about this checkpoint; the text says why."""


class Disagreement(Exception):
    """The two sides do not even agree on names or shapes; the text says where."""


Examination = Callable[["Subject"], Iterator[Finding]]
"""Asks both sides; raises `NotComparable` or `Disagreement`."""


@dataclass(frozen=True)
class Part:
    """Something that transformers has too.

    Attributes:
        stage: of the pipeline.
        covers: what a fault in it would be.
        against: family to the class that it is held against.
        examine: family to what asks both sides.
        lacking: family to why there is nothing to hold it against.
    """

    name: str
    stage: str
    covers: str
    against: Mapping[str, str]
    examine: Mapping[str, Examination]
    lacking: Mapping[str, str] = field(default_factory=dict)

    def ask(self, subject: Subject, table: Table | None = None) -> list[Opinion]:
        """Every finding judged; one opinion `not run` where there is none."""
        family = subject.family
        against = self.against.get(family, "")
        if family not in self.examine:
            why = self.lacking.get(family, "nobody has said yet whether transformers has this family's")
            return [self._not_run(against, why)]
        try:
            return [self._judged(finding, against, family, table) for finding in self.examine[family](subject)]
        except NotComparable as reason:
            return [self._not_run(against, str(reason))]
        except ImportError as error:  # another version of the library
            return [self._not_run(against, f"this version of transformers lacks it: {error}")]
        except Disagreement as reason:
            return [Opinion(self.name, self.stage, against, self.covers, Verdict.FAIL, why=str(reason))]

    def _not_run(self, against: str, why: str) -> Opinion:
        return Opinion(self.name, self.stage, against, self.covers, Verdict.NOT_RUN, why=why)

    def _judged(self, finding: Finding, against: str, family: str, table: Table | None) -> Opinion:
        said = (self.name, self.stage, against, finding.what)
        if finding.theirs.shape != finding.ours.shape:
            why = f"shape {list(finding.ours.shape)} here, {list(finding.theirs.shape)} there"
            return Opinion(*said, Verdict.FAIL, why=why)
        if finding.theirs.size == 0:
            return Opinion(*said, Verdict.FAIL, why="nothing was compared")
        metrics = measure(finding.kind, finding.theirs, finding.ours)
        bounds = limits(Standard.SECOND_OPINION, finding.kind, family, table)
        broken = [limit for limit in bounds if not limit.holds(metrics)]
        shown = (broken or bounds)[0]
        why = f"{shown.metric} {metrics[shown.metric]:.3g}, limit {shown.bound:g}: {shown.reason}" if broken else ""
        verdict = Verdict.FAIL if broken else Verdict.PASS
        return Opinion(*said, verdict, shown.metric, float(metrics[shown.metric]), shown.bound, why)
