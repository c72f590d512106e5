"""A few drawn pictures with a question and its answer each, for the quickstart and the self-test of a package.

python -m export.demo.samples          # writes export/demo/samples/
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from export.demo.pictures import Item, Scene, draw

FOLDER = Path(__file__).parent / "samples"


@dataclass(frozen=True)
class Sample:
    """A picture of ``size`` (width, height) and questions with their answers."""

    name: str
    scene: Scene
    size: tuple[int, int]
    dialogue: tuple[tuple[str, str], ...]


def _item(kind: str, colour: str, rgb: tuple[int, int, int], x: float, y: float, radius: float) -> Item:
    return Item(kind, colour, rgb, x, y, radius, 0.0)


SAMPLES = (
    Sample(
        "shapes",
        Scene(
            (
                _item("circle", "red", (220, 40, 40), 0.18, 0.17, 0.13),
                _item("star", "blue", (40, 80, 220), 0.5, 0.5, 0.14),
                _item("square", "green", (0, 150, 40), 0.82, 0.82, 0.12),
            ),
            (255, 255, 255),
            0.0,
            0,
        ),
        (320, 240),
        (
            ("What color is the circle?", "red"),
            ("How many shapes are there?", "3"),
            ("星形在哪里？", "中间"),
            ("绿色的图形是什么？", "正方形"),
        ),
    ),
    Sample(
        "digit",
        Scene((_item("7", "black", (20, 20, 20), 0.5, 0.5, 0.3),), (245, 245, 235), 0.0, 0),
        (240, 240),
        (("What digit is printed?", "7"), ("图中的数字是什么？", "7")),
    ),
    Sample(
        "triangle",
        Scene((_item("triangle", "orange", (250, 145, 30), 0.82, 0.18, 0.14),), (235, 240, 250), 0.0, 0),
        (224, 224),
        (("Describe the picture.", "an orange triangle at the top right"), ("这是什么形状？", "三角形")),
    ),
)


def files() -> dict[str, bytes]:
    """PNG pictures and ``samples.json``: picture file to a list of [question, answer]."""
    contents: dict[str, bytes] = {}
    for sample in SAMPLES:
        buffer = io.BytesIO()
        Image.fromarray(draw(sample.scene, *sample.size)).save(buffer, "PNG", optimize=True)
        contents[f"{sample.name}.png"] = buffer.getvalue()
    questions = {f"{sample.name}.png": [list(turn) for turn in sample.dialogue] for sample in SAMPLES}
    contents["samples.json"] = (json.dumps(questions, indent=2, ensure_ascii=False) + "\n").encode()
    return contents


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        partial = FOLDER / f".{name}.partial"
        partial.write_bytes(content)
        partial.replace(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
