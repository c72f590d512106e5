"""How far every stage and every block is off, failing or not, each stage fed the reference's own inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity_tests.backends.examiner import NotShown
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import relative_max
from parity_tests.judging.probes import Question
from parity_tests.judging.run_details import StageError
from parity_tests.localize.localize import candidate_blocks, run_stage, stage_calls
from parity_tests.reference.reference import TorchBackend
from runtime_py.contracts import DECODER
from runtime_py.errors import EdgeproofError


def package_profile(
    reference: TorchBackend, candidate: Candidate, question: Question, comparison: str
) -> tuple[StageError, ...]:
    """The package against the reference that holds the same numbers, stage by stage in pipeline order."""
    errors = []
    for stage, call in stage_calls(reference, candidate, question).items():
        output = run_stage(candidate, stage, call.inputs)
        note = ""
        inside: Mapping[str, np.ndarray] = {}
        try:
            inside = candidate_blocks(candidate, stage, call.inputs)
        except (EdgeproofError, NotShown) as error:
            note = f"the blocks inside cannot be read: {error}"
        blocks = _errors(reference.block_outputs(stage, call.inputs), inside)
        errors.append(StageError(comparison, stage, call.error(output), blocks, note))
    return tuple(errors)


def loss_profile(
    full: TorchBackend, stored: TorchBackend, candidate: Candidate, question: Question
) -> tuple[StageError, ...]:
    """The reference with the stored numbers against full precision."""
    errors = []
    for stage, call in stage_calls(full, candidate, question).items():
        output = _output(stored, stage, call.inputs)
        blocks = _errors(full.block_outputs(stage, call.inputs), stored.block_outputs(stage, call.inputs))
        errors.append(StageError("loss", stage, call.error(output), blocks))
    return tuple(errors)


def _output(backend: TorchBackend, stage: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    if stage != DECODER:
        return next(iter(backend.run(stage, inputs).values()))
    tokens = inputs["inputs_embeds"].shape[1]
    return backend.forward(backend.start(tokens), inputs, np.arange(tokens))


def _errors(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> tuple[tuple[str, float], ...]:
    return tuple((block, _error(array, actual[block])) for block, array in expected.items() if block in actual)


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    return relative_max(expected, actual.reshape(expected.shape)) if actual.size == expected.size else float("inf")
