"""Pictures for calibration that the demo's scenes do not cover: printed text, charts, photographs' statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LINES = (
    "Total 42.50",
    "Exit on the left",
    "Invoice No. 20391",
    "Opening hours 9 to 17",
    "Do not touch",
    "Platform 7",
    "Fresh bread daily",
    "Speed limit 50",
    "Made in 1998",
    "Please wait here",
)
"""Short lines as they are met on signs and receipts; Pillow's built-in font has Latin letters only."""

NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def text_page(lines: Sequence[str], width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (height, width, 3) with each line printed below the other, as large as fits."""
    dark = rng.random() < 0.3
    paper = rng.integers(0, 60, 3) if dark else rng.integers(215, 256, 3)
    ink = rng.integers(190, 256, 3) if dark else rng.integers(0, 70, 3)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in paper))
    brush = ImageDraw.Draw(picture)
    size = max(8, int(min(1.6 * width / max(len(line) for line in lines), 0.7 * height / len(lines))))
    font = ImageFont.load_default(size)
    for number, line in enumerate(lines):
        brush.text(
            (width * 0.05, height * (0.06 + 0.9 * number / len(lines))), line, fill=tuple(int(v) for v in ink), font=font
        )
    return np.asarray(picture)


def bar_chart(values: Sequence[int], width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (height, width, 3): one labelled bar per value of 1 to 9, with axes."""
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    brush = ImageDraw.Draw(picture)
    left, bottom, top = width * 0.08, height * 0.86, height * 0.08
    font = ImageFont.load_default(max(8, height // 16))
    step = (width * 0.96 - left) / len(values)
    colour = tuple(int(v) for v in rng.integers(20, 200, 3))
    for number, value in enumerate(values):
        x, tall = left + number * step, (bottom - top) * value / 9
        brush.rectangle((x + step * 0.15, bottom - tall, x + step * 0.85, bottom), fill=colour)
        brush.text((x + step * 0.2, bottom + 2), NAMES[number % len(NAMES)], fill=(30, 30, 30), font=font)
    brush.line((left, top, left, bottom, width * 0.98, bottom), fill=(0, 0, 0), width=max(1, width // 150))
    return np.asarray(picture)


def photograph(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (height, width, 3) noise with the statistics of photographs.

    Amplitudes fall as 1 / frequency, and the three channels share most of their light and little of their colour
    (Field, J. Opt. Soc. Am. A 4, 1987; Ruderman et al., J. Opt. Soc. Am. A 15, 1998).
    """
    vertical, horizontal = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(vertical, horizontal)
    amplitude = 1.0 / np.maximum(frequency, 1.0 / max(width, height))
    planes = np.stack(
        [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * amplitude, s=(height, width)) for _ in range(3)],
        axis=-1,
    )
    planes /= planes.std(axis=(0, 1))
    light, warm, green = np.moveaxis(planes, -1, 0)
    colour = np.stack([light + 0.25 * warm + 0.1 * green, light - 0.2 * green, light - 0.25 * warm + 0.1 * green], axis=-1)
    return np.clip(colour * rng.uniform(35, 60) + rng.uniform(90, 150), 0, 255).astype(np.uint8)
