"""Whether a checkpoint, and a calibration beside it, are what a package was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from parity_tests.check.candidate import Candidate
from parity_tests.reference.checkpoint_side import Checkpoint
from runtime_py.errors import UsageError


def require_same_model(candidate: Candidate, checkpoint: Checkpoint) -> None:
    """Raise UsageError when the checkpoint is another model than the package's, or its calibration another one.

    Other processor settings are a fault of the package, and judged, when the checkpoint's config.json is the very one.
    """
    if checkpoint.calibration is not None:
        _require_same_calibration(candidate, checkpoint.calibration)
    made_from = (candidate.manifest["family"], candidate.manifest["variant"], candidate.manifest["runtime"])
    given = (checkpoint.spec.family, checkpoint.spec.variant, checkpoint.spec.runtime)
    if made_from != given and not (made_from[:2] == given[:2] and _same_config(candidate, checkpoint)):
        raise UsageError(
            f"{checkpoint.folder} is not what the package was made from",
            f"{made_from[0]} {made_from[1]} with the same processor settings, found {given[0]} {given[1]}",
            "name the checkpoint of this package with --reference",
        )


def _require_same_calibration(candidate: Candidate, calibration: Path) -> None:
    """Codes of another calibration differ in every layer, which would read as a fault of the package."""
    from export.quantisation.stored import DIGEST, digest_of, read_manifest

    stated = candidate.block.get("calibration")
    if stated is None:
        raise UsageError(
            f"{candidate.folder} holds no calibrated codes, and a calibration is given",
            "no calibration for codes that were rounded",
            "leave --calibration out",
        )
    read_manifest(calibration)
    if stated.get(DIGEST) != digest_of(calibration):
        raise UsageError(
            f"{calibration} is not the calibration that {candidate.folder} was made with",
            f"one whose manifest.json has the SHA-256 {stated.get(DIGEST)}",
            "name that one with --calibration",
        )


def _same_config(candidate: Candidate, checkpoint: Checkpoint) -> bool:
    """Whether config.json is, byte for byte, the one the package was made from."""
    path = checkpoint.folder / "config.json"
    stated = {row["path"]: row["sha256"] for row in candidate.manifest["source"].get("files") or ()}
    return path.is_file() and stated.get(path.name) == hashlib.sha256(path.read_bytes()).hexdigest()
