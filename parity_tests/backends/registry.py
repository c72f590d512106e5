"""Who examines which backend: a class of its own where there is one, else `Examiner` as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from parity_tests.backends.examiner import Examiner
from parity_tests.backends.mlc import MlcExaminer
from parity_tests.backends.onnx import OnnxExaminer
from runtime_py.backends.record import Ability, RuntimeBackend
from runtime_py.backends.records import MLC, ONNX

_EXAMINERS: dict[str, type[Examiner]] = {ONNX.name: OnnxExaminer, MLC.name: MlcExaminer}

OF_THE_REFERENCE = Examiner(None)


def examiner_of(record: RuntimeBackend) -> Examiner:
    """The examiner of a backend's packages."""
    return _EXAMINERS.get(record.name, Examiner)(record)


def register(record: RuntimeBackend, kind: type[Examiner]) -> None:
    """Name the class that examines a backend from outside."""
    _EXAMINERS[record.name] = kind


def stand_in_for(record: RuntimeBackend, others: Sequence[RuntimeBackend]) -> RuntimeBackend | None:
    """What runs on any machine in the place of a backend that needs a device: the first of the others that can."""
    if record.can(Ability.WITHOUT_DEVICE):
        return None
    return next((other for other in others if other.can(Ability.WITHOUT_DEVICE)), None)
