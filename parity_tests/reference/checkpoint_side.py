"""The reference's side of a comparison: a checkpoint opened and built in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor, TokenizerLike
from runtime_py.preprocess.processors import make_processor

if TYPE_CHECKING:
    from export.checkpoint.opened import OpenedCheckpoint
    from export.quantisation.cache_scales import CacheScales
    from export.quantisation.codes import CodeSource, WeightProvider
    from export.quantisation.spec import Assignment
    from export.source.weight_map import WeightMap
    from export.specs import ModelSpec
    from parity_tests.check.candidate import Candidate
    from parity_tests.reference.arithmetic import Arithmetic
    from parity_tests.reference.reference import TorchBackend

IN_MEMORY_BYTES = 3 << 29
"""A reference predicted to need more than this (1.5 GiB) is streamed from the checkpoint instead of loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint ready to be built in PyTorch.

    Attributes:
        calibration: folder of the calibration whose codes a package holds; None for round to nearest.
        opened: the same as an export has it.
    """

    folder: Path
    spec: ModelSpec
    weights: WeightMap
    processor_name: str
    calibration: Path | None = None
    tokenizer_folder: Path | None = None
    opened: OpenedCheckpoint | None = None

    def processor(self, tokenizer: TokenizerLike | None = None) -> Processor:
        return make_processor(self.processor_name, self.spec.runtime, tokenizer)


def open_checkpoint(folder: Path, calibration: Path | None = None) -> Checkpoint:
    """Recognise a checkpoint folder and check every tensor of it.

    Raises:
        CheckpointError, UnsupportedModelError: see export.families.registry and export.source.weight_map.
    """
    from export.checkpoint.opened import open_folder

    return as_reference(open_folder(folder), calibration)


def as_reference(checkpoint: OpenedCheckpoint, calibration: Path | None = None) -> Checkpoint:
    """The reference's side of a checkpoint that is open already, its weights on disk."""
    assert checkpoint.folder is not None and checkpoint.weights is not None
    tokens = checkpoint.tokenizer_folder()
    return Checkpoint(
        checkpoint.folder, checkpoint.spec, checkpoint.weights, checkpoint.family.processor, calibration, tokens, checkpoint
    )


def reference(
    spec: ModelSpec, weights: WeightProvider, device: str = "cpu", arithmetic: Arithmetic | None = None
) -> TorchBackend:
    """The reference in float32: whole in memory where that is small, streamed where it is not."""
    from parity_tests.reference.arithmetic import PLAIN
    from parity_tests.reference.reference import TorchBackend
    from parity_tests.reference.streamed import StreamedTorchBackend

    if streams(spec, device):
        return StreamedTorchBackend(spec, weights, arithmetic=arithmetic or PLAIN)
    return TorchBackend(spec, weights, device=device, arithmetic=arithmetic or PLAIN)


def streams(spec: ModelSpec, device: str = "cpu") -> bool:
    """Whether the reference of a model is streamed from its checkpoint."""
    from parity_tests.reference.streamed import full_peak

    return device == "cpu" and full_peak(spec) > IN_MEMORY_BYTES


def dequantised(checkpoint: Checkpoint, rows: Mapping[str, Mapping[str, str]], backend: str) -> WeightProvider:
    """The checkpoint's weights as the package's integers say them; ``rows`` are the assignments of its ``backend``."""
    from export.quantisation.codes import DequantisedWeights
    from export.quantisation.grids import GRIDS

    return DequantisedWeights(*codes_of(checkpoint, rows, backend), GRIDS)


def codes_of(
    checkpoint: Checkpoint, rows: Mapping[str, Mapping[str, str]], backend: str
) -> tuple[WeightProvider, CodeSource, dict[str, Assignment]]:
    """What a package of a ``backend`` is written from: weights, integers of quantised layers, and which these are."""
    from export.package.manifest import assignments_of
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS
    from export.quantisation.stored import StoredCodes

    assignments = assignments_of(checkpoint.spec, rows)
    if checkpoint.calibration is not None:
        stored = StoredCodes(checkpoint.calibration, backend, checkpoint.weights, assignments)
        return stored.weights, stored, assignments
    return checkpoint.weights, RoundToNearest(checkpoint.weights, assignments, GRIDS), assignments


def stored_reference(
    checkpoint: Checkpoint, candidate: Candidate, device: str = "cpu", arithmetic: Arithmetic | None = None
) -> TorchBackend | None:
    """The reference that holds a package's own numbers and makes its deliberate roundings; None for exact packages.

    Args:
        arithmetic: None for the roundings that no copy of the package goes without.
    """
    rows = candidate.assignments()
    if "calibration" in candidate.block and checkpoint.calibration is None:
        raise UsageError(
            f"{candidate.folder} holds calibrated codes, and the calibration is not given",
            "the folder that python -m calibrate wrote",
            "name it with --calibration",
        )
    weights: WeightProvider = checkpoint.weights
    if is_quantised(rows):
        weights = candidate.examiner.own_numbers(candidate, checkpoint)
    if weights is checkpoint.weights and not candidate.stores_roundings():
        return None
    made = arithmetic or candidate.examiner.arithmetic(rows)
    if candidate.examiner.keeps_bytes(candidate):
        made = replace(made, cache=cache_scales(checkpoint, candidate.examiner.record_name))
    return reference(checkpoint.spec, weights, device, made)


def cache_scales(checkpoint: Checkpoint, backend: str) -> CacheScales:
    """Scales of a cache in bytes, as a calibration has them whose files `codes_of` has checked.

    Raises:
        UsageError: it has none, or those of another model.
    """
    from export.quantisation.stored import read_manifest, stored_cache_scales

    assert checkpoint.calibration is not None, "a package with such scales names its calibration"
    scales = stored_cache_scales(checkpoint.calibration, read_manifest(checkpoint.calibration), backend)
    if scales is None:
        raise UsageError(
            f"{checkpoint.calibration} holds no scales of a cache, and the package keeps one in bytes",
            "the calibration that the package was made with",
            "name that one with --calibration",
        )
    scales.check(checkpoint.spec.decoder)
    return scales


def is_quantised(rows: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether any layer is stored as integers."""
    return any(row.get("grid") for row in rows.values())
