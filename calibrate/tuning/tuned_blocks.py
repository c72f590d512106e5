"""The step of a calibration in which tuned scales reach the disk: ``<backend>/tuned/<block>.safetensors``.

A block's file is never rewritten, since on ``--resume`` each step is held against the hashes of its files. Tuned blocks are
files of their own, all of them one step of the journal: a run that was cut off before that step's end has none of them, and
tunes again, from the same codes to the same bytes. The files that they replace go when the folder is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.blockwise import BlockwiseCalibration
from export.quantisation.grids import GRIDS
from export.quantisation.stored import read_codes, read_overlay, write_block

if TYPE_CHECKING:
    from torch import Tensor

    from calibrate.tuning.scale_tuning import TunedScales

FOLDER = "tuned"
"""Of a backend's folder; block files in it stand for those of the same name beside it."""


def tune_blocks(work: BlockwiseCalibration, tune: Callable[[], TunedScales]) -> Mapping[str, Any]:
    """Tune a calibration whose blocks are all done, or take what an earlier run has tuned.

    Args:
        work: goes on with the tuned files.

    Returns:
        the record of `TunedScales`, for the manifest.
    """
    from export.package.journal import write_json

    folder, backend, journal = work.journal.folder, Path(work.backend), work.journal
    account, step = backend / f"{FOLDER}.json", f"{work.backend} tuned"
    if step not in journal.steps:
        (folder / backend).mkdir(parents=True, exist_ok=True)
        scales = tune()
        files = [path for block in _blocks(work, scales.scales) for path in _write(work, block, scales.scales)]
        write_json(folder / account, scales.record)
        journal.finish(step, [account, *files])
    for record in journal.steps[step]:
        if record.path != account.as_posix() and record.path.endswith(".json"):
            work.moved(json.loads((folder / record.path).read_text(encoding="utf-8")))
    found_record: Mapping[str, Any] = json.loads((folder / account).read_text(encoding="utf-8"))
    return found_record


def replaced(backend: str, paths: Iterable[str]) -> set[str]:
    """Which of a finished calibration's files tuned ones stand for."""
    inside = f"{backend}/{FOLDER}/"
    return {f"{backend}/{path.removeprefix(inside)}" for path in paths if path.startswith(inside)}


def _blocks(work: BlockwiseCalibration, scales: Mapping[str, Tensor]) -> list[Path]:
    """Files with layers that have other scales now."""
    return sorted({work.state.files[layer] for layer in scales})


def _write(work: BlockwiseCalibration, file: Path, scales: Mapping[str, Tensor]) -> list[Path]:
    """A block's codes and overlay as they are with its tuned scales, and its part of the report."""
    from export.package.journal import write_json

    folder, path = work.journal.folder, Path(work.backend) / FOLDER / file.name
    layers, rows = {}, {}
    for layer in [name for name, at in work.state.files.items() if at == file]:
        row = work.report()[layer]
        grid = GRIDS[row["grid"]]
        codes = read_codes(file, layer, grid, 0, row["rows"])
        layers[layer] = (replace(codes, scales=scales.get(layer, codes.scales)), grid)
        rows[layer] = row | {"file": path.as_posix()}
    write_block(folder / path, layers, read_overlay(file))
    write_json(folder / path.with_suffix(".json"), rows)
    return [path, path.with_suffix(".json")]
