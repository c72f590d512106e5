"""A golden folder as questions and expected arrays.

The folder is a checkpoint with ``inputs.npz`` and ``outputs.npz`` beside it. Array names may carry a prompt's prefix
(``p0_``) or a piece's number (``vision_2``); a case may lack any array.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_tests.probes import PROBES, Question, base_name
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor

IDS = "input_ids"
_LAST_ROWS = re.compile(r"(prefill_logits)_last(\d+)")


@dataclass(frozen=True)
class GoldenCase:
    """Arrays by published name.

    Attributes:
        prefixes: of every prompt in inputs.npz, "" for the plain one, in file order.
    """

    folder: Path
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    prefixes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.resolve().name


@dataclass(frozen=True)
class GoldenArray:
    """One array of outputs.npz and what it is.

    Attributes:
        prefix: the prompt it belongs to.
        probe: the probe's name, or "" when it is none of them.
        piece: which image piece, when the name has a number.
        last_rows: the expected array holds only this many last positions.
    """

    name: str
    prefix: str
    rest: str
    probe: str
    piece: int | None = None
    last_rows: int | None = None


def read_case(folder: Path) -> GoldenCase:
    """The case in a folder.

    Raises:
        UsageError: it holds no inputs.npz, outputs.npz or prompt.
    """
    arrays = []
    for name in ("inputs.npz", "outputs.npz"):
        try:
            with np.load(folder / name, allow_pickle=False) as stored:
                arrays.append({key: stored[key] for key in stored.files})
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{folder} is no golden case: {name} cannot be read ({error})",
                "a checkpoint folder with inputs.npz and outputs.npz beside it",
                "give the folder of one case, e.g. parity_tests/goldens/minicpm-v",
            ) from error
    inputs, outputs = arrays
    prefixes = tuple(name[: -len(IDS)] for name in inputs if name == IDS or name.endswith("_" + IDS))
    if not prefixes:
        raise UsageError(f"{folder} has no prompt", "an array input_ids in inputs.npz", "use a whole case")
    return GoldenCase(folder, inputs, outputs, prefixes)


def pictures(case: GoldenCase) -> list[np.ndarray]:
    """All raw pictures in order: ``image``, or ``image_0``.., or the one clip (frames, height, width, 3) of ``frames``."""
    if "image" in case.inputs:
        return [case.inputs["image"]]
    if "frames" in case.inputs:
        return [case.inputs["frames"]]
    found: list[np.ndarray] = []
    while f"image_{len(found)}" in case.inputs:
        found.append(case.inputs[f"image_{len(found)}"])
    return found


def question(case: GoldenCase, prefix: str, processor: Processor) -> Question:
    """The prompt with as many of the pictures, from the first, as it has placeholders for.

    Raises:
        UsageError: no number of the case's pictures fits the prompt.
    """
    ids = np.asarray(case.inputs[prefix + IDS], dtype=np.int64)
    every = pictures(case)
    refusal: UsageError | None = None
    for count in range(len(every), -1, -1):
        chosen = every[:count]
        try:
            processor.layout(ids, processor.images(chosen) if chosen else [])
        except UsageError as error:
            refusal = refusal or error
            continue
        return Question(prefix, tuple(chosen), ids)
    assert refusal is not None
    raise refusal


def classify(case: GoldenCase, name: str) -> GoldenArray:
    """What an array of outputs.npz is, from its name alone."""
    prefix = max((p for p in case.prefixes if name.startswith(p)), key=len, default="")
    rest = name[len(prefix) :]
    if prefix and rest == "logits":
        return GoldenArray(name, prefix, rest, "prefill_logits")
    tail = _LAST_ROWS.fullmatch(rest)
    if tail:
        return GoldenArray(name, prefix, rest, tail[1], last_rows=int(tail[2]))
    probe = base_name(rest)
    if probe is None:
        return GoldenArray(name, prefix, rest, "")
    number = None if rest in PROBES else int(rest.rpartition("_")[2])
    return GoldenArray(name, prefix, rest, probe, piece=number)


def fitted(pieces: Sequence[np.ndarray], expected: np.ndarray) -> np.ndarray:
    """The recorded pieces in the expected array's shape.

    Pieces are joined as rows of their last axis, which the published code may have stacked, flattened or stripped of the
    batch axis; when the number of values differs the joined rows come back as they are, and the comparison fails.
    """
    if len(pieces) == 1 and pieces[0].size == expected.size:
        return pieces[0].reshape(expected.shape)
    if pieces and all(piece.ndim >= 3 and piece.shape[1:] == pieces[0].shape[1:] for piece in pieces):
        joined = np.concatenate(pieces)
        return joined.reshape(expected.shape) if joined.size == expected.size else joined
    joined = np.concatenate([piece.reshape(-1, piece.shape[-1]) for piece in pieces])
    return joined.reshape(expected.shape) if joined.size == expected.size else joined


def expected_pixels(case: GoldenCase, prefix: str) -> dict[str, np.ndarray]:
    """What the published preprocessing made, by probe name: ``pixel_values``, or one per slice from ``slice_uint8_i``."""
    stored = case.inputs.get(f"{prefix}pixel_values")
    if stored is not None:
        return {"pixel_values": stored}
    found: dict[str, np.ndarray] = {}
    while not prefix and f"slice_uint8_{len(found)}" in case.inputs:
        piece = case.inputs[f"slice_uint8_{len(found)}"].astype(np.float32)
        found[f"pixel_values_{len(found)}"] = ((piece / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    return found
