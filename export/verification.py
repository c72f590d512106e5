"""What an export asks of whoever checks its packages.

`parity_tests.check.verifier` answers; the command line (``export/__main__.py``) hands it in, so that the export itself
knows nothing of how a package is compared with its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from export.backends.base import BuildOptions, Prediction
    from export.checkpoint.opened import OpenedCheckpoint
    from export.specs import ModelSpec
    from runtime_py.preprocess.base import Processor


class Verifier(Protocol):
    """The check at the end of an export, and what it will take."""

    def predicted_peak(self, spec: ModelSpec, predictions: Mapping[str, Prediction], options: BuildOptions) -> int:
        """Resident bytes of the export's process while it checks, at its highest, from shapes alone.

        Args:
            predictions: what every backend of the package takes, by its name.
            options: what the package is made for, in which precision, with how many positions in its cache.
        """
        ...

    def least_context(self, processor: Processor, spec: ModelSpec) -> int:
        """Positions of the shortest question that a check asks, with its answer.

        Args:
            processor: the family's, with the checkpoint's tokenizer.
        """
        ...

    def check(self, package: Path, checkpoint: OpenedCheckpoint, calibration: Path | None) -> dict[str, Any]:
        """Compare a package with its checkpoint; returns the manifest's ``verification`` block, its ``verdict`` included.

        Args:
            package: the package folder, manifest and all, still under its working name.
            checkpoint: what it was made from, recognised and with every tensor checked.
            calibration: folder of the calibration whose codes the package holds, or None.
        """
        ...

    def equal_tokens(self, package: Path, spec: ModelSpec) -> int:
        """How many leading tokens of the self-test's answer the package itself gives; 0 where it cannot run here."""
        ...
