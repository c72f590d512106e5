"""The question a package carries, and the answer its exporter's reference gave: one file format for both sides.

``selftest/sample.json``: ``image`` (a file beside it), ``prompt``, and, once the reference has answered,
``expected_ids``, its greedy tokens without penalty, and ``agree``, how many of the first ones must be equal (all of
them at full precision; fewer when quantised, as recorded at export).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from runtime_py.errors import PackageError
from runtime_py.files.json_file import MEGABYTE, read_json
from runtime_py.generation.generate import Overrides
from runtime_py.package.files import listed

if TYPE_CHECKING:
    from runtime_py.model import Model

FOLDER = "selftest"
SAMPLE = "sample.json"
MAX_BYTES = MEGABYTE


@dataclass(frozen=True)
class Sample:
    """One picture and question. ``expected_ids`` is empty when no reference answered at export."""

    image: Path
    prompt: str
    expected_ids: tuple[int, ...] = ()
    agree: int = 0


@dataclass(frozen=True)
class Outcome:
    """What the package said; ``passed`` is None when there is nothing to compare with."""

    ids: tuple[int, ...]
    text: str
    equal: int
    passed: bool | None


def write_sample(
    package: Path, picture: np.ndarray, prompt: str, expected_ids: Sequence[int] = (), agree: int | None = None
) -> list[Path]:
    """Write picture (uint8 RGB) and question below a package folder; returns the files relative to it."""
    folder = package / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "image.png"
    partial = folder / "image.png.partial"
    Image.fromarray(picture).save(partial, "PNG", compress_level=9)
    partial.replace(image)
    value: dict[str, object] = {"image": image.name, "prompt": prompt}
    if len(expected_ids):
        wanted = len(expected_ids) if agree is None else agree
        value |= {"expected_ids": [int(token) for token in expected_ids], "agree": wanted}
    partial = folder / f"{SAMPLE}.partial"
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / SAMPLE)
    return [Path(FOLDER) / image.name, Path(FOLDER) / SAMPLE]


def read_sample(package: Path) -> Sample | None:
    """The package's sample, or None when it carries none.

    Raises:
        PackageError: the file is damaged or names a picture outside its folder.
    """
    path = package / FOLDER / SAMPLE
    if not path.is_file():
        return None
    value = read_json(path, MAX_BYTES)
    try:
        name, expected = str(value["image"]), tuple(int(token) for token in value.get("expected_ids", []))
        sample = Sample(path.parent / name, str(value["prompt"]), expected, int(value.get("agree", len(expected))))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PackageError(
            f"{path} is damaged: {type(error).__name__} {error}", "image and prompt", "copy the package again"
        ) from error
    if Path(name).name != name:
        raise PackageError(f"{path} names the picture '{name}'", "a file beside it", "do not use this package")
    return sample


def run(model: Model, sample: Sample, new_tokens: int = 16) -> Outcome:
    """Ask the sample question, choosing greedily and without penalty; the model's conversation is forgotten."""
    wanted = len(sample.expected_ids) or new_tokens
    overrides = Overrides(max_new_tokens=wanted, temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    model.reset()
    answer = model.chat(sample.prompt, [sample.image], overrides=overrides)
    model.reset()
    pairs = zip(answer.ids, sample.expected_ids, strict=False)
    equal = next((place for place, (got, want) in enumerate(pairs) if got != want), None)
    count = min(len(answer.ids), len(sample.expected_ids)) if equal is None else equal
    return Outcome(answer.ids, answer.text, count, count >= sample.agree if sample.expected_ids else None)


def require(model: Model) -> Outcome | None:
    """Run the package's sample and raise PackageError unless it answers as the reference did."""
    name = f"{FOLDER}/{SAMPLE}"
    if name not in listed(model.package.manifest):
        return None
    model.package.file(name)
    sample = read_sample(model.package.folder)
    assert sample is not None
    model.package.file(f"{FOLDER}/{sample.image.name}")
    outcome = run(model, sample)
    if outcome.passed is False:
        raise PackageError(
            f"{model.package.folder} leaves the reference's self-test answer after {outcome.equal} tokens: {outcome.text!r}",
            f"{list(sample.expected_ids[: sample.agree])}, found {list(outcome.ids)}",
            "run python -m parity_tests --package on it; it names the first stage that differs",
        )
    return outcome
