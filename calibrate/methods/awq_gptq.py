"""AWQ's factors, then GPTQ's codes: columns that matter are made larger first, and later columns make up for earlier ones.

The two do not compete. AWQ chooses on which scale a column is rounded, which GPTQ cannot; GPTQ chooses the codes, which AWQ
leaves to rounding. Factors are found as `calibrate.methods.awq` finds them.
"""

from __future__ import annotations

from typing import ClassVar

from calibrate.methods.awq import Awq
from calibrate.methods.gptq import Gptq
from calibrate.statistics.moments import Moment


class AwqGptq(Awq):
    """`Awq` whose scaled layers get their codes from `Gptq` instead of nearest codes."""

    name: ClassVar[str] = "awq-gptq"
    title: ClassVar[str] = "AWQ's scales folded into the weights before, GPTQ with activation order after"
    longer: ClassVar[bool] = True

    def __init__(self) -> None:
        self._gptq = Gptq()
        super().__init__(self._gptq)

    def prepare(self, moment: Moment) -> None:
        """Factor the moment of the scaled inputs."""
        self._gptq.prepare(moment)
