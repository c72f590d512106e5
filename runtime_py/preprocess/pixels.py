"""Pixel arithmetic every family shares: Pillow resizing, normalisation, layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from runtime_py.errors import PackageError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def kernel(settings: Mapping[str, Any]) -> Image.Resampling:
    """The resampling kernel of a processor's optional setting ``resample``, one of Pillow's names in small letters.

    Raises:
        PackageError: Pillow has no such kernel.
    """
    name = str(settings.get("resample", "bicubic"))
    try:
        return Image.Resampling[name.upper()]
    except KeyError as error:
        known = ", ".join(item.name.lower() for item in Image.Resampling)
        raise PackageError(f"the processor setting resample is '{name}'", known, "export the package again") from error


def resize(
    picture: np.ndarray, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """Pillow resizing of uint8 RGB (height, width, 3): antialiased when shrinking, 8-bit result."""
    return np.asarray(Image.fromarray(picture).resize((width, height), resample))


def normalise(picture: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 (height, width, 3) to float32 (1, 3, height, width): (x / 255 - mean) / std, each step in float32."""
    scaled: np.ndarray = picture.astype(np.float32) / np.float32(255.0)
    scaled = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
