"""Any picture a person hands over, to the uint8 RGB array that processors read.

The published code calls ``Image.open(path).convert("RGB")`` and does not turn a photograph by its EXIF orientation; so
do we. Alpha is dropped, not blended, by that same call. Of an animation the first frame is taken.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from runtime_py.errors import ImageError
from runtime_py.files.json_file import shortened

MAX_PIXELS = 64_000_000
"""Larger pictures are refused from their header, before a pixel is decoded: 64 million are 192 MB as RGB."""

EXIF_ORIENTATION = 0x0112

Picture = str | Path | Image.Image | np.ndarray

log = logging.getLogger(__name__)


def open_picture(picture: Picture, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A path, PIL image or uint8 array (height, width[, 1, 3 or 4]) to uint8 RGB (height, width, 3).

    Raises:
        ImageError: missing, empty, no image, damaged, too many pixels, or an array of another kind.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture, max_pixels)
    if isinstance(picture, Image.Image):
        _check_size(picture, "the given image", max_pixels)
        return _to_rgb(picture, "the given image")
    try:
        path = Path(picture)
        is_file = path.is_file()
    except (TypeError, ValueError) as error:  # ValueError: a null character
        raise ImageError(
            f"{shortened(picture)} is no picture", "a path, a PIL image or a uint8 array", "pass one of them"
        ) from error
    if not is_file:
        raise ImageError(f"{path} is no file", "an image file", "check the path")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)", "an image file", "copy or download the picture again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise _too_large(str(path), str(error), max_pixels) from error
    except Exception as error:  # a damaged header raises whatever its decoder stumbles over
        raise ImageError(
            f"{path} cannot be read as an image: {error}",
            "a format Pillow knows, such as JPEG, PNG, WebP, GIF or TIFF",
            "convert the picture to JPEG or PNG",
        ) from error
    with image:
        _check_size(image, str(path), max_pixels)
        return _to_rgb(image, str(path))


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} = {width * height:,} pixels", max_pixels)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels", "at least 1 x 1", "send another picture")


def _too_large(name: str, found: str, max_pixels: int) -> ImageError:
    return ImageError(f"{name} is too large", f"at most {max_pixels:,} pixels, found {found}", "scale the picture down")


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        if orientation not in {0, 1}:
            log.info("%s has EXIF orientation %s, which the published preprocessing ignores", name, orientation)
        if image.mode.startswith("I;16") or image.mode == "I":
            deep = np.asarray(image).astype(np.float64)
            image = Image.fromarray(np.clip(np.round(deep / 257), 0, 255).astype(np.uint8))
        return np.ascontiguousarray(np.asarray(image.convert("RGB")))
    except Exception as error:  # as above: RuntimeError, NotImplementedError, SyntaxError and more were seen
        raise ImageError(
            f"{name} is damaged: {error}", "a whole image file", "copy or download the picture again"
        ) from error


def _from_array(array: np.ndarray, max_pixels: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)} is no picture",
            "uint8 (height, width, 3), or with 1 or 4 channels, or (height, width)",
            "scale to 0..255, convert to uint8 and put the channels last",
        )
    if array.size == 0:
        raise ImageError(f"an array of shape {list(array.shape)} holds no pixel", "at least 1 x 1", "send another picture")
    pixels = array.shape[0] * array.shape[1]
    if pixels > max_pixels:
        raise _too_large("the given array", f"{pixels:,} pixels", max_pixels)
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return np.ascontiguousarray(np.stack([flat] * 3, axis=-1) if flat.ndim == 2 else flat[..., :3])
