"""A golden folder as questions and expected arrays.

The folder is a checkpoint with ``inputs.npz`` and ``outputs.npz`` beside it. Array names may carry a prompt's prefix
(``p0_``) or a piece's number (``vision_2``); a case may lack any array.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from parity_tests.judging.probes import PROBES, Question, base_name
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor

IDS = "input_ids"
_LAST_ROWS = re.compile(r"(?:prefill_)?logits_last(\d*)")
MOST_CHOICES = 8
"""Pictures up to which every selection of them is tried for a prompt."""


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


def pictures(case: GoldenCase, prefix: str = "") -> list[np.ndarray]:
    """A prompt's raw pictures in order: ``image``, ``image_0``.., and the clip (frames, height, width, 3) of ``frames``.

    Those that carry the prompt's prefix, where there are any; else those that all prompts share.
    """
    for start in dict.fromkeys((prefix, "")):
        image, frames = ([case.inputs[start + name]] if start + name in case.inputs else [] for name in ("image", "frames"))
        arrays = [*image, *_numbered(case, f"{start}image_"), *frames]
        if arrays:
            return arrays
    return []


def _numbered(case: GoldenCase, stem: str) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    while f"{stem}{len(arrays)}" in case.inputs:
        arrays.append(case.inputs[f"{stem}{len(arrays)}"])
    return arrays


def question(case: GoldenCase, prefix: str, processor: Processor) -> Question:
    """The prompt with as many of the pictures as it has placeholders for: the first ones, or else any of them in order.

    Raises:
        UsageError: no selection of the case's pictures fits the prompt.
    """
    ids = np.asarray(case.inputs[prefix + IDS], dtype=np.int64)
    refusal: UsageError | None = None
    for chosen in _selections(pictures(case, prefix)):
        try:
            processor.layout(ids, processor.images(chosen) if chosen else [])
        except UsageError as error:
            refusal = refusal or error
            continue
        return Question(prefix, tuple(chosen), ids)
    assert refusal is not None
    raise refusal


def _selections(every: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """All pictures, then the first ones, then the other selections, the larger before the smaller."""
    for count in range(len(every), -1, -1):
        yield every[:count]
    if len(every) <= MOST_CHOICES:
        for count in range(len(every) - 1, 0, -1):
            yield from list(combinations(every, count))[1:]


def classify(case: GoldenCase, name: str) -> GoldenArray:
    """What an array of outputs.npz is, from its name alone; one without a prompt's prefix belongs to `main_prompt`."""
    prefix = max((p for p in case.prefixes if name.startswith(p)), key=len, default=None)
    rest = name if prefix is None else name[len(prefix) :]
    prefix = main_prompt(case) if prefix is None else prefix
    tail = _LAST_ROWS.fullmatch(rest)
    if tail:
        return GoldenArray(name, prefix, rest, "prefill_logits", last_rows=int(tail[1] or 1))
    if rest == "logits":
        return GoldenArray(name, prefix, rest, "prefill_logits")
    probe = base_name(rest)
    if probe is None:
        return GoldenArray(name, prefix, rest, "")
    number = None if rest in PROBES else int(rest.rpartition("_")[2])
    return GoldenArray(name, prefix, rest, probe, piece=number)


def main_prompt(case: GoldenCase) -> str:
    """The prompt without a prefix, or else the longest: the one with all the pictures."""
    if "" in case.prefixes:
        return ""
    return max(case.prefixes, key=lambda prefix: case.inputs[prefix + IDS].shape[-1])


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
    pixels: dict[str, np.ndarray] = {}
    for slice_ in _numbered(case, f"{prefix}slice_uint8_"):
        piece = slice_.astype(np.float32)
        pixels[f"pixel_values_{len(pixels)}"] = ((piece / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    return pixels
