"""Any picture a person hands over, to the uint8 RGB array that processors read.

The published code calls ``Image.open(path).convert("RGB")`` and does not turn a photograph by its EXIF orientation; so
do we, unless ``upright`` is asked for. Alpha is dropped, not blended, and channels of 16 bits are clipped at 255 by that
same call. Of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import logging
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from runtime_py.errors import ImageError
from runtime_py.files.json_file import shortened
from runtime_py.preprocess.extent import Check
from runtime_py.preprocess.picture_formats import SHOWN, formats, holds_its_pixels, kind_of
from runtime_py.preprocess.picture_metadata import Orientation, orientation_of, pixels_alone, turned

MAX_PIXELS = 64_000_000
"""Larger pictures are refused from their header, before a pixel is decoded: 64 million are 192 MB as RGB."""

MAX_REWRITTEN_BYTES = 256 << 20
"""Larger files are not read again without their metadata."""

GIVEN = "the given image"

Picture = str | Path | Image.Image | np.ndarray

log = logging.getLogger(__name__)


def open_picture(
    picture: Picture, max_pixels: int = MAX_PIXELS, upright: bool = False, check: Check | None = None
) -> np.ndarray:
    """A path, PIL image or uint8 array (height, width[, 1, 3 or 4]) to uint8 RGB (height, width, 3).

    Args:
        upright: turn a photograph as EXIF says; without it, one that is not upright is told of once.
        check: is told name, width and height before a pixel is decoded, and refuses what a model cannot take.

    Raises:
        ImageError: missing, empty, no picture of a format that is opened (`runtime_py.preprocess.picture_formats`), damaged,
            too many pixels, or an array of another kind.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture, max_pixels, check)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, and of sizes that are checked here
        if isinstance(picture, Image.Image):
            return _decoded(picture, GIVEN, max_pixels, upright, check)
        path = _file(picture)
        try:
            return _read(path, path, max_pixels, upright, check)
        except _Unreadable as error:
            again = pixels_alone(path.read_bytes()) if path.stat().st_size <= MAX_REWRITTEN_BYTES else None
            if again is None:
                raise error.told(path) from error.cause
        try:
            array = _read(io.BytesIO(again), path, max_pixels, upright, check)
        except _Unreadable as error:
            raise error.told(path) from error.cause
    log.info("%s holds metadata that cannot be read and was passed over", path)
    return array


class _Unreadable(Exception):
    """Pillow failed.

    Attributes:
        damaged: the format was recognised.
    """

    def __init__(self, cause: Exception, damaged: bool) -> None:
        super().__init__(str(cause))
        self.cause, self.damaged = cause, damaged

    def told(self, path: Path) -> ImageError:
        if self.damaged:
            return ImageError(
                f"{path} is damaged: {str(self.cause)[:200]}",
                "a whole image file",
                "copy or download the picture again",
            )
        kind = kind_of(path)
        return ImageError(
            f"{path} cannot be read as an image" + (f": it is {kind}" if kind else ""),
            f"a file whose content is {SHOWN}",
            "convert the picture to JPEG or PNG",
        )


def _file(picture: object) -> Path:
    try:
        path = Path(picture)  # type: ignore[arg-type]
        is_file = path.is_file()
    except (TypeError, ValueError, OSError) as error:  # ValueError: a null character; OSError: a name longer than any may be
        raise ImageError(
            f"{shortened(picture)} is no picture", "a path, a PIL image or a uint8 array", "pass one of them"
        ) from error
    if not is_file:
        raise ImageError(f"{path} is no file", "an image file", "check the path")
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error}", "a file that may be read", "check its permissions") from error
    if size == 0:
        raise ImageError(f"{path} is empty (0 bytes)", "an image file", "copy or download the picture again")
    return path


def _read(file: Path | io.BytesIO, path: Path, max_pixels: int, upright: bool, check: Check | None) -> np.ndarray:
    try:
        image = Image.open(file, formats=formats())
    except Image.DecompressionBombError as error:
        raise _too_large(str(path), str(error), max_pixels) from error
    except Exception as error:  # a damaged header raises whatever its decoder stumbles over
        raise _Unreadable(error, damaged=False) from error
    with image:
        size = path.stat().st_size
        if image.size[0] * image.size[1] <= max_pixels and not holds_its_pixels(image, size):
            claimed = f"{size:,} bytes cannot hold the {image.size[0]} x {image.size[1]} pixels that its header claims"
            raise _Unreadable(ValueError(claimed), damaged=True)
        return _decoded(image, str(path), max_pixels, upright, check)


def _decoded(image: Image.Image, name: str, max_pixels: int, upright: bool, check: Check | None) -> np.ndarray:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} = {width * height:,} pixels", max_pixels)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels", "at least 1 x 1", "send another picture")
    orientation = orientation_of(image)
    if upright and orientation.swaps_sides:
        width, height = height, width
    if check is not None:
        check(name, width, height)
    try:
        deep = image.mode.startswith(("I", "F"))
        image.load()
        plain = image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # as above: RuntimeError, NotImplementedError, SyntaxError and more were seen
        if name == GIVEN:
            raise ImageError(f"{name} cannot be decoded: {error}", "a whole image", "open it again") from error
        raise _Unreadable(error, damaged=True) from error
    if upright:
        plain = turned(plain, orientation)
    elif orientation is not Orientation.UPRIGHT:
        _tell_orientation(name, int(orientation))
    if deep:
        _tell_depth(name)
    return np.ascontiguousarray(np.asarray(plain))


@lru_cache(maxsize=1024)
def _tell_orientation(name: str, orientation: int) -> None:
    """Once for each picture."""
    log.warning(
        "%s lies on its side or is mirrored (EXIF orientation %d); it is read as it is stored, as the published code does; "
        "--upright (in Python upright=True) turns it",
        name,
        orientation,
    )


@lru_cache(maxsize=1024)
def _tell_depth(name: str) -> None:
    """Once for each picture."""
    log.warning(
        "%s has 16 bits a channel or more, of which the published code clips everything above 255; save it with 8 bits", name
    )


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    return ImageError(f"{name} is too large", f"at most {max_pixels:,} pixels, found {size}", "scale the picture down")


def _from_array(array: np.ndarray, max_pixels: int, check: Check | None) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        raise ImageError(
            f"an array of {array.dtype} {list(array.shape)} is no picture",
            "uint8 (height, width, 3), or with 1 or 4 channels, or (height, width)",
            "scale to 0..255, convert to uint8 and put the channels last",
        )
    if array.size == 0:
        raise ImageError(f"an array of shape {list(array.shape)} holds no pixel", "at least 1 x 1", "send another picture")
    height, width = array.shape[:2]
    if height * width > max_pixels:
        raise _too_large("the given array", f"{height * width:,} pixels", max_pixels)
    if check is not None:
        check("the given array", width, height)
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return np.ascontiguousarray(np.stack([flat] * 3, axis=-1) if flat.ndim == 2 else flat[..., :3])
