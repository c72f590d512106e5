"""A text read through a package's codes in float32, to hold other ways to keep their keys and values against."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.quantisation.codes import WeightProvider
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.laboratory.text_distance import DistanceTable, log_probabilities, windows_of
from parity_tests.reference.arithmetic import Arithmetic
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.base import Backend


@dataclass(frozen=True)
class CodesRead:
    """What was read, and the table that other readings of it are rows of.

    Attributes:
        side: the package.
        weights: what its codes stand for.
        plain: its arithmetic, keys and values as they are.
        windows: int64 (windows, tokens).
    """

    checkpoint: Checkpoint
    side: Candidate
    weights: WeightProvider
    plain: Arithmetic
    windows: np.ndarray
    table: DistanceTable

    @classmethod
    def begun(cls, given: argparse.Namespace, calibration: Path | None, of: str, first: str) -> CodesRead:
        """Read the text of `reading_flags` through the checkpoint and the codes; prints the head and the codes' row.

        Args:
            calibration: that the codes are of.
            of: what rows are; ``first``: the name of the codes' row.
        """
        checkpoint = open_checkpoint(given.checkpoint, calibration)
        side = open_candidate(given.package, trust=True)
        windows = windows_of(given)
        full = log_probabilities(TorchBackend(checkpoint.spec, checkpoint.weights), side, windows)
        weights = side.examiner.own_numbers(side, checkpoint)
        plain = side.examiner.arithmetic(side.assignments())
        codes = log_probabilities(TorchBackend(checkpoint.spec, weights, arithmetic=plain), side, windows)
        table = DistanceTable(windows, full, codes, "the codes in float32", of)
        table.row(first, codes)
        return cls(checkpoint, side, weights, plain, windows, table)

    def row(self, name: str, backend: Backend, side: Candidate | None = None) -> None:
        """One more reading; ``side`` is a package of its own, where the backend is."""
        self.table.row(name, log_probabilities(backend, side or self.side, self.windows))
