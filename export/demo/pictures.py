"""Pictures that are drawn: coloured shapes on a 3 x 3 raster and printed digits, in any picture size.

A `Scene` says what is there in fractions of the picture; `draw` paints it. The same scene can be painted square or wide,
so that what a processor does to an odd size is part of training and of the held-out pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star")
DIGITS = tuple("0123456789")
KINDS = SHAPES + DIGITS

COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (220, 40, 40), (190, 30, 45)),
    "green": ((0, 128, 0), (0, 235, 0), (60, 180, 80)),
    "blue": ((0, 0, 255), (40, 80, 220), (60, 130, 235)),
    "yellow": ((255, 255, 0), (245, 215, 40), (240, 230, 70)),
    "orange": ((255, 165, 0), (240, 125, 20), (250, 145, 45)),
    "purple": ((128, 0, 128), (150, 70, 200), (110, 30, 160)),
    "black": ((0, 0, 0), (25, 25, 25), (45, 45, 45)),
}
"""Corners of the region of RGB space that bears each name; a colour is a random mixture of its corners."""

CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""The nine positions, row by row."""


@dataclass(frozen=True)
class Item:
    """One painted thing; lengths are fractions: ``x`` of the width, ``y`` of the height, ``radius`` of the shorter side."""

    kind: str
    colour: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    angle: float
    pixel_font: bool = False

    @property
    def cell(self) -> int:
        """Index into `CELLS` of the middle of the item."""
        return min(int(self.y * 3), 2) * 3 + min(int(self.x * 3), 2)

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in reading order of the cells."""

    items: tuple[Item, ...]
    background: tuple[int, int, int]
    noise: float
    seed: int

    @property
    def shapes(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if not item.is_digit)

    @property
    def digit(self) -> Item | None:
        return next((item for item in self.items if item.is_digit), None)


def sample_scene(rng: np.random.Generator, difficulty: float = 1.0, digits: float = 0.36) -> Scene:
    """A random scene: a lone digit, a digit beside shapes, or one to four shapes.

    Args:
        difficulty: 0 draws at most two things, large; 1 draws the full range.
        digits: share of scenes with a digit.
    """
    dark = rng.random() < 0.15
    background = _mixed(
        rng,
        ((20, 20, 30), (70, 70, 70), (40, 50, 60))
        if dark
        else ((255, 255, 255), (235, 235, 235), (240, 245, 225), (225, 235, 250)),
        6,
    )
    names = [name for name in COLOURS if not (dark and name == "black")]
    with_digit = rng.random() < digits
    if with_digit and rng.random() < 0.6:
        items = [_lone_digit(rng, names, difficulty)]
    else:
        most = 2 if difficulty < 0.5 else 4
        count = int(rng.integers(1, 3 if with_digit else most + 1))
        cells = rng.permutation(9)[: count + with_digit]
        alone = count + with_digit == 1
        items = [_shape(rng, int(cell), names, difficulty, alone) for cell in cells[:count]]
        items += [_digit(rng, int(cell), names) for cell in cells[count:]]
    noise = float(rng.choice([0.0, 0.0, rng.uniform(1, 8)]))
    return Scene(tuple(sorted(items, key=lambda item: item.cell)), background, noise, int(rng.integers(2**31)))


def sample_size(rng: np.random.Generator, side: int) -> tuple[int, int]:
    """A picture size (width, height): half the time ``side`` squared, else 0.8 to 4 times as long, aspect 2:3 to 3:2."""
    if rng.random() < 0.5:
        return side, side
    length, aspect = side * math.exp(rng.uniform(math.log(0.8), math.log(4.0))), math.exp(rng.uniform(-0.4, 0.4))
    return round(length * math.sqrt(aspect)), round(length / math.sqrt(aspect))


def draw(scene: Scene, width: int, height: int) -> np.ndarray:
    """Paint a scene: uint8 RGB (height, width, 3)."""
    picture = Image.new("RGB", (width, height), scene.background)
    for item in scene.items:
        if item.is_digit:
            _paint_digit(picture, item)
        else:
            _paint_shape(picture, item)
    pixels = np.asarray(picture)
    if scene.noise:
        rng = np.random.default_rng(scene.seed)
        grain = rng.standard_normal(pixels.shape, dtype=np.float32) * scene.noise
        pixels = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    return pixels


def _mixed(rng: np.random.Generator, corners: tuple[tuple[int, int, int], ...], grain: float) -> tuple[int, int, int]:
    weights = rng.dirichlet(np.full(len(corners), 0.7))
    rgb = weights @ np.array(corners, dtype=np.float64) + rng.uniform(-grain, grain, 3)
    red, green, blue = (int(v) for v in np.clip(np.rint(rgb), 0, 255))
    return red, green, blue


def _coloured(rng: np.random.Generator, names: list[str]) -> tuple[str, tuple[int, int, int]]:
    name = str(rng.choice(names))
    return name, _mixed(rng, COLOURS[name], 8)


def _shape(rng: np.random.Generator, cell: int, names: list[str], difficulty: float, alone: bool) -> Item:
    low = 0.125 if difficulty < 0.5 else 0.1
    radius = float(rng.uniform(low, 0.22 if alone else 0.155))
    colour, rgb = _coloured(rng, names)
    x, y = _placed(rng, cell, radius)
    return Item(str(rng.choice(SHAPES)), colour, rgb, x, y, radius, float(rng.uniform(-14, 14)))


def _digit(rng: np.random.Generator, cell: int, names: list[str]) -> Item:
    colour, rgb = _coloured(rng, names)
    radius = float(rng.uniform(0.125, 0.165))
    x, y = _placed(rng, cell, radius)
    return Item(str(rng.choice(DIGITS)), colour, rgb, x, y, radius, float(rng.uniform(-8, 8)), bool(rng.random() < 0.2))


def _lone_digit(rng: np.random.Generator, names: list[str], difficulty: float) -> Item:
    colour, rgb = _coloured(rng, names)
    radius = float(rng.uniform(0.24 if difficulty < 0.5 else 0.15, 0.4))
    x, y = rng.uniform(radius, 1 - radius, 2)
    return Item(
        str(rng.choice(DIGITS)), colour, rgb, float(x), float(y), radius, float(rng.uniform(-8, 8)), bool(rng.random() < 0.2)
    )


def _placed(rng: np.random.Generator, cell: int, radius: float) -> tuple[float, float]:
    middle = np.array([(cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3]) + rng.uniform(-0.035, 0.035, 2)
    x, y = np.clip(middle, min(radius, 0.3) + 0.01, 0.99 - min(radius, 0.3))
    return float(x), float(y)


def _paint_shape(picture: Image.Image, item: Item) -> None:
    """Antialiased by painting a mask four times as large."""
    width, height = picture.size
    radius = item.radius * min(width, height)
    scale = 4 if radius < 40 else 2
    side = 2 * math.ceil(radius + 2)
    mask = Image.new("L", (side * scale, side * scale), 0)
    brush, middle, r = ImageDraw.Draw(mask), side * scale / 2, radius * scale
    if item.kind == "circle":
        brush.ellipse((middle - r, middle - r, middle + r, middle + r), fill=255)
    else:
        turn = math.radians(item.angle)
        brush.polygon(
            [(middle + r * d * math.sin(a + turn), middle - r * d * math.cos(a + turn)) for a, d in _outline(item.kind)],
            fill=255,
        )
    mask = mask.resize((side, side), Image.Resampling.BOX)
    picture.paste(item.rgb, (round(item.x * width - side / 2), round(item.y * height - side / 2)), mask)


@cache
def _outline(kind: str) -> tuple[tuple[float, float], ...]:
    """Corners as (angle from the top, distance in radii)."""
    if kind == "square":
        return tuple((math.pi * (0.25 + 0.5 * i), 1.2) for i in range(4))
    if kind == "triangle":
        return tuple((2 * math.pi * i / 3, 1.15) for i in range(3))
    return tuple((math.pi * i / 5, 1.15 if i % 2 == 0 else 0.48) for i in range(10))


def _paint_digit(picture: Image.Image, item: Item) -> None:
    width, height = picture.size
    tall = max(2 * item.radius * min(width, height), 8)
    glyph = _pixel_glyph(item.kind) if item.pixel_font else _glyph(item.kind)
    ratio = tall / glyph.height
    mask = glyph.resize((max(round(glyph.width * ratio), 3), round(tall)), Image.Resampling.BICUBIC)
    mask = mask.rotate(item.angle, Image.Resampling.BICUBIC, expand=True)
    corner = (round(item.x * width - mask.width / 2), round(item.y * height - mask.height / 2))
    picture.paste(item.rgb, corner, mask)


@cache
def _glyph(digit: str) -> Image.Image:
    """The digit in Pillow's built-in outline font, cut to its ink, 160 pixels a line."""
    return _ink(digit, ImageFont.load_default(160), 220)


@cache
def _pixel_glyph(digit: str) -> Image.Image:
    """The digit in Pillow's built-in 6 x 11 pixel font, cut to its ink and enlarged with hard edges."""
    small = _ink(digit, ImageFont.load_default_imagefont(), 24)
    return small.resize((small.width * 14, small.height * 14), Image.Resampling.NEAREST)


def _ink(digit: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, side: int) -> Image.Image:
    sheet = Image.new("L", (side, side), 0)
    ImageDraw.Draw(sheet).text((side // 6, side // 12), digit, fill=255, font=font)
    return sheet.crop(sheet.getbbox())
