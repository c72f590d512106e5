"""What a calibration says of itself: what decides its bytes, while it runs, and its manifest in the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import half_passes
from calibrate.evaluation.held_out import count_of
from calibrate.methods import method_named
from calibrate.request import CalibrationRequest
from calibrate.samples.data import Prompt
from calibrate.samples.prompts import sample_set_of
from export.package.journal import FileRecord, record_file
from export.quantisation.choice import read_choice
from export.quantisation.stored import SCHEMA
from runtime_py.version import VERSION

if TYPE_CHECKING:
    from export.checkpoint.opened import OpenedCheckpoint

SEARCHED = ("source", "goal", "bytes", "scores")
"""What is kept of a choice of bits: the checkpoint that it was measured on, what was sought, and what that gave."""


def fingerprint(
    request: CalibrationRequest, checkpoint: OpenedCheckpoint, prompts: Sequence[Prompt], apart: Sequence[Prompt] = ()
) -> dict[str, Any]:
    """What decides the bytes of a calibration; ``apart`` are samples that it is checked on, where they are samples."""
    from export.package.source_hashes import stamp

    return {
        **_settings(request, checkpoint),
        "model": checkpoint.id,
        "revision": checkpoint.revision,
        "checkpoint": {name: stamp(path) for name, path in checkpoint.files().items()},
        "samples": _samples(request, checkpoint, prompts),
        "checked_on": _digest(apart),
    }


def manifest(
    request: CalibrationRequest,
    checkpoint: OpenedCheckpoint,
    prompts: Sequence[Prompt],
    blocks: Mapping[str, Any],
    files: Sequence[FileRecord],
) -> dict[str, Any]:
    """No times and no paths of this machine: equal inputs give equal bytes."""
    assert checkpoint.folder is not None
    folder = checkpoint.folder
    sources = [
        asdict(record_file(folder, path.relative_to(folder)))
        for path in checkpoint.files().values()
        if path.is_relative_to(folder)
    ]
    return {
        "kind": "calibration",
        "schema": SCHEMA,
        **_settings(request, checkpoint),
        "source": {"id": checkpoint.id, "revision": checkpoint.revision, "files": sources},
        "samples": _samples(request, checkpoint, prompts),
        "backends": blocks,
        "files": [asdict(record) for record in files],
    }


def _settings(request: CalibrationRequest, checkpoint: OpenedCheckpoint) -> dict[str, Any]:
    asked = request.export()
    choice = None if request.choice is None else read_choice(request.choice)
    half = half_passes(checkpoint.spec, method_named(request.method))
    return {
        "edgeproof": VERSION,
        "method": request.method,
        "sequential": request.sequential,
        "held_out": count_of(request.held_out, checkpoint.spec),
        **({"tune_scales": request.tune_scales} if request.tune_scales else {}),
        # another processor may have no bfloat16, and blocks of both kinds would be no calibration that can be repeated
        **({"passes": "bfloat16"} if half else {}),
        "target": asked.target_record().name,
        "precision": asked.precision_name(),
        "choice": None if choice is None else choice["backends"],
        "search": None if choice is None else {key: choice[key] for key in SEARCHED if key in choice},
        "options": asked.backend_options(),
    }


def _samples(request: CalibrationRequest, checkpoint: OpenedCheckpoint, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the samples were, with a digest of everything the model saw of them."""
    return {
        "source": sample_set_of(request, checkpoint),
        "text_only": request.text_only,
        "seed": request.seed,
        "count": len(prompts),
        "tokens": sum(prompt.layout.input_ids.shape[1] for prompt in prompts),
        "image_rows": sum(int(prompt.layout.image_rows.sum()) for prompt in prompts),
        "sha256": _digest(prompts),
    }


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.layout.input_ids.tobytes())
        for image in prompt.images:
            for name in sorted(image.vision):
                digest.update(image.vision[name].tobytes())
    return digest.hexdigest()
