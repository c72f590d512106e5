"""Real texts and photographs that lie on this machine anyway, in the packages installed beside this one.

Texts are descriptions, licences and docstrings of installed distributions, read from their files: nothing is imported, run
or downloaded. Python's own library is left out, so that its documentation can be what methods are compared on. What is
here differs from machine to machine; equal installations give equal samples.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from calibrate.samples.data import Sample, built_in
from runtime_py.errors import MachineError
from runtime_py.preprocess.base import Message, TokenizerLike

LEAST, LONGEST = 200, 1600
"""Characters of a passage."""

TOKENS = 384
"""Of a passage as a model reads it, at most."""

OF_ONE, MODULES = 12, 4
"""Passages of one kind from one distribution, and files of code looked into."""

MOST_BYTES = 200_000
"""Of a file that is looked into."""

ENOUGH = 64
"""Passages that make a set; fewer say one thing again and again."""

PICTURE_EVERY = 3
"""One sample in so many is a picture with a conversation about it."""

PHOTOGRAPHS = (
    "sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/astronaut.png", "skimage/data/cat.png", "skimage/data/chelsea.png", "skimage/data/coffee.png",
    "skimage/data/rocket.jpg", "skimage/data/page.png", "skimage/data/text.png", "skimage/data/coins.png",
    "skimage/data/camera.png", "skimage/data/motorcycle_left.png",
)  # fmt: skip
"""Photographs and scans that well-known packages carry, by their place beside other packages."""

ASKED = ("What is in the photo?", "Describe this picture.", "这张照片里有什么？")


@dataclass(frozen=True)
class Passage:
    """A real text, and a question that it answers."""

    question: str
    text: str


@cache
def passages() -> tuple[Passage, ...]:
    """Every text, distribution by distribution in the order of their names, none twice."""
    seen: dict[str, Passage] = {}
    named = {(one.metadata["Name"] or "").lower(): one for one in metadata.distributions()}
    for name, distribution in sorted(named.items()):
        if name and name != "edgeproof":
            for passage in _passages_of(name, distribution):
                seen.setdefault(passage.text, passage)
    return tuple(seen.values())


def photographs() -> list[Path]:
    """The files of `PHOTOGRAPHS` that are installed."""
    folders = dict.fromkeys(Path(str(one.locate_file(""))) for one in metadata.distributions())
    return [folder / name for name in PHOTOGRAPHS for folder in folders if (folder / name).is_file()]


def digest() -> str:
    """SHA-256 of the texts, and of the names and sizes of the photographs: machines where it is equal draw equal samples."""
    texts = [[passage.question, passage.text] for passage in passages()]
    pictures = [[path.name, path.stat().st_size] for path in photographs()]
    return hashlib.sha256(json.dumps([texts, pictures]).encode()).hexdigest()


def require_same(asked: str) -> None:
    """Refuse to draw samples that are not those of the machine that asks.

    Args:
        asked: its `digest`.

    Raises:
        MachineError: this machine's is another.
    """
    here = digest()
    if here != asked:
        raise MachineError(
            f"{platform.node()} has other texts and photographs (--sample-set machine) than the machine that asks",
            f"those of digest {asked[:12]}, found {here[:12]}",
            "install the same packages on every machine, or choose --sample-set general or --calibration-data",
        )


def _passages_of(name: str, distribution: metadata.Distribution) -> Iterator[Passage]:
    about = str(distribution.metadata.json.get("description") or "")
    for number, piece in enumerate(_pieces(about)):
        yield Passage(f"What is {name}, and how is it used?" if not number else f"Tell me more about {name}.", piece)
    files = sorted(distribution.files or (), key=str)
    stated = [file for file in files if file.stem.upper() in ("LICENSE", "LICENCE", "COPYING") and file.suffix != ".py"]
    for file in stated[:1]:
        for piece in _pieces(_read(Path(str(file.locate())))):
            yield Passage(f"What does the licence of {name} say?", piece)
    code = [file for file in files if file.suffix == ".py" and "test" not in str(file)]
    chosen = code[:: max(1, len(code) // MODULES)][:MODULES]
    told = [pair for file in chosen for pair in _docstrings(_read(Path(str(file.locate()))), file.stem)]
    for what, text in told[:OF_ONE]:
        yield Passage(f"Explain {what} of the Python package {name}.", text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _pieces(text: str) -> list[str]:
    """Whole paragraphs together, up to `LONGEST` characters."""
    pieces = [""]
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if pieces[-1] and len(pieces[-1]) + len(paragraph) > LONGEST:
            pieces.append("")
        pieces[-1] += ("\n\n" if pieces[-1] else "") + paragraph
    return [piece[:LONGEST].strip() for piece in pieces if len(piece.strip()) >= LEAST][:OF_ONE]


def _docstrings(code: str, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= LEAST:
                yield f"{module}.{node.name}" if not isinstance(node, ast.Module) else module, text[:LONGEST]


def machine_samples(
    count: int, seed: int, tokenizer: TokenizerLike, tokens: int = TOKENS, text_only: bool = False, side: int | None = None
) -> Iterator[Sample]:
    """``count`` samples: real texts as answers, and one in `PICTURE_EVERY` a picture, photographs before drawn ones.

    Args:
        tokens: of an answer, at most.
        side: see `built_in`.
    """
    draw = np.random.default_rng([seed, 13])
    texts, pictures = passages(), photographs()
    order = draw.permutation(len(texts))
    for number in range(count):
        turn, kind = divmod(number, PICTURE_EVERY)
        if not kind and not text_only:
            drawn = built_in(1, seed, side=side, first=turn)
            yield _photograph(pictures[turn], turn) if turn < len(pictures) else next(drawn)
            continue
        passage = texts[order[number % len(texts)]]
        said = shortened(passage.text, tokens, tokenizer.encode)
        yield Sample((), (Message("user", passage.question), Message("assistant", said)))


def _photograph(path: Path, number: int) -> Sample:
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return Sample((pixels,), (Message("user", ASKED[number % len(ASKED)], (0,)),), name=path.name)


def shortened(text: str, tokens: int, encode: Callable[[str], list[int]]) -> str:
    """The text's beginning that is at most so many tokens."""
    while (count := len(encode(text))) > tokens:
        text = text[: min(len(text) - 1, len(text) * tokens // count)]
    return text
