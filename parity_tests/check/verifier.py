"""The check at the end of an export, as `export.verification` asks for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_py.errors import MachineError

if TYPE_CHECKING:
    from export.backends.base import BuildOptions, Prediction
    from export.checkpoint.opened import OpenedCheckpoint
    from export.specs import ModelSpec
    from parity_tests.backends.examiner import Examiner
    from runtime_py.model import Model
    from runtime_py.preprocess.base import Processor

log = logging.getLogger("edgeproof.parity")

CHECK_ROWS = 2560
"""Image rows of the check's pictures at most; a model that takes more per picture gets them from larger pictures."""

CHECK_TOKENS = 128
"""Text tokens of the check's longest question and answer, generously."""

CHECK_BASE = 480_000_000
"""Resident bytes of an export's process beside what `_whole_peak` counts: the libraries, and what its steps left.

Measured over cpu and android packages of three demos and of 100 and 282 million parameters: 267 to 449 MB.
"""

CHECK_WORDS, CHECK_STEPS = 32, 24
"""Text tokens of an ordinary question of the check; rows of logits that are kept beside its prompt's: those fed, the answer
left alone, and the prompt's last again."""

COMPARED_COPIES = 4
"""Arrays in float64, as large as a prompt's logits, that a comparison holds at its highest."""


class PackageVerifier:
    """Compares a finished package with the PyTorch reference: whole in memory where small, in pieces where not.

    The package was made by the export that asks, so its code is trusted.
    """

    def predicted_peak(self, spec: ModelSpec, predictions: Mapping[str, Prediction], options: BuildOptions) -> int:
        """Resident bytes: references and package in memory, or one streamed and the other in pieces."""
        from parity_tests.backends.registry import examiner_of, stand_in_for
        from parity_tests.reference.checkpoint_side import streams
        from parity_tests.reference.streamed import predicted_peak

        target = options.target
        here = stand_in_for(target.runs, target.backends) or target.runs
        examiner, running = examiner_of(here), predictions[here.name]
        if not streams(spec):
            return _whole_peak(spec, running, options, examiner)
        tokens = min(spec.image_rows, CHECK_ROWS) + CHECK_TOKENS
        filled = min(1.0, tokens / options.limits.context)
        return predicted_peak(spec, tokens) + examiner.peak(spec, running.device_bytes, filled)

    def least_context(self, processor: Processor, spec: ModelSpec) -> int:
        """Of the standard questions that the family takes, at as many tokens of an answer as the check asks for."""
        from parity_tests.check.package_check import STEPS, STREAMED_STEPS
        from parity_tests.check.package_questions import shortest
        from parity_tests.reference.checkpoint_side import streams

        return shortest(processor) + (STREAMED_STEPS if streams(spec) else STEPS)

    def check(self, package: Path, checkpoint: OpenedCheckpoint, calibration: Path | None) -> dict[str, Any]:
        """The manifest's ``verification`` block."""
        from parity_tests.check.package_check import CheckOptions, check
        from parity_tests.reference.checkpoint_side import as_reference
        from parity_tests.report.meaning import meaning

        result = check(package, as_reference(checkpoint, calibration), CheckOptions(in_pieces=True, trust=True))
        for line in meaning(result.judgement).lines:
            log.info("%s", line)
        return {**result.to_json(), "verdict": result.verdict}

    def equal_tokens(self, package: Path, spec: ModelSpec) -> int:
        """Leading tokens of the self-test's answer that the package gives like the reference."""
        from parity_tests.reference.checkpoint_side import streams
        from runtime_py.package import selftest

        sample = selftest.read_sample(package)
        assert sample is not None
        try:
            with _opened(package, in_pieces=streams(spec)) as model:
                return selftest.run(model, sample).equal
        except MachineError:
            return 0


def _whole_peak(spec: ModelSpec, running: Prediction, options: BuildOptions, examiner: Examiner) -> int:
    """With everything in memory: what the export left, the references, the package, and what everyone said.

    The exact copy of a package is closed before the package opens, which takes its memory over; a cache in float32 and
    matrices unpacked to it are the larger of the two. Of logits, every side's are kept until all are compared, in float64.
    """
    from export.modules.build import parameter_count
    from runtime_py.backends.record import Ability

    assert examiner.record is not None
    exact = options.precision in examiner.full_precisions
    references = (1 if exact else 2) * 4 * parameter_count(spec)
    copies = 0 if exact or not examiner.record.can(Ability.EXACT_COPY) else 1
    package = examiner.held(running.device_bytes) + copies * running.device_bytes.get("kv_cache", 0)
    rows = [pictures + CHECK_WORDS for pictures in _picture_rows(spec)]
    sides = (1 if exact else 2) + 1 + copies
    said = 4 * spec.decoder.vocabulary * sides * (sum(rows) + len(rows) * CHECK_STEPS)
    compared = 8 * COMPARED_COPIES * spec.decoder.vocabulary * max(rows)
    return CHECK_BASE + references + package + said + compared


def _picture_rows(spec: ModelSpec) -> tuple[int, ...]:
    """Rows of image features that each of the check's questions puts into its prompt."""
    from export.families.registry import families
    from export.package.sample_questions import PROMPTS, drawn_pictures
    from runtime_py.errors import UsageError
    from runtime_py.preprocess.processors import make_processor

    processor = make_processor(families()[spec.family].processor, spec.runtime, None)
    pictures = drawn_pictures()
    rows = []
    for _, chosen, _ in PROMPTS:
        try:
            images = processor.images([pictures[index] for index in chosen]) if chosen else []
        except UsageError:
            images = []
        rows.append(sum(image.rows for image in images))
    return tuple(rows)


def _opened(folder: Path, in_pieces: bool) -> Model:
    from runtime_py.model import Model, load

    if not in_pieces:
        return load(folder, verify="off", trust=True)
    from parity_tests.check.candidate import open_candidate
    from runtime_py import package, tokenizer

    candidate = open_candidate(folder, in_pieces=True, trust=True)
    return Model(package.read(folder), candidate.backend, candidate.processor, tokenizer.load(folder))
