"""Any picture a person hands over, to the uint8 RGB array that processors read.

The published code calls ``Image.open(path).convert("RGB")`` and does not turn a photograph by its EXIF orientation; so
do we, unless ``upright`` is asked for. Alpha is dropped, not blended, and channels of 16 bits are clipped at 255 by that
same call. Of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from runtime_py.errors import ImageError
from runtime_py.files.json_file import shortened
from runtime_py.preprocess.extent import Check
from runtime_py.preprocess.picture_formats import HEADER_BYTES, SHOWN, formats, holds_its_pixels, kind_of
from runtime_py.preprocess.picture_metadata import Orientation, orientation_of, pixels_alone, turned

MAX_PIXELS = 64_000_000
"""Larger pictures are refused from their header, before a pixel is decoded: 64 million are 192 MB as RGB."""

MAX_REWRITTEN_BYTES = 256 << 20
"""Larger files are not read again without their metadata."""

GIVEN = "the given image"

_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|file|blob):/|data:[\w/;,]", re.IGNORECASE)
"""What a URL begins with; a `Path` has one slash of two."""

Picture = str | Path | bytes | Image.Image | np.ndarray

log = logging.getLogger(__name__)


def open_picture(
    picture: Picture, max_pixels: int = MAX_PIXELS, upright: bool = False, check: Check | None = None
) -> np.ndarray:
    """A path, the bytes of a file, PIL image or uint8 array (height, width[, 1, 3 or 4]) to uint8 RGB (height, width, 3).

    Args:
        upright: turn a photograph as EXIF says; without it, one that is not upright is told of once.
        check: is told name, width and height once, before a pixel is decoded, and refuses what a model cannot take.

    Raises:
        ImageError: missing, empty, no picture of a format that is opened (`runtime_py.preprocess.picture_formats`), damaged,
            too many pixels, or an array of another kind.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture, max_pixels, check)
    asked = None if check is None else cache(check)  # a file that is read again has the size it had
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, and of sizes that are checked here
        if isinstance(picture, Image.Image):
            try:
                return _decoded(picture, GIVEN, max_pixels, upright, asked)
            except _Unreadable as error:
                raise ImageError(
                    f"{GIVEN} cannot be decoded: {error.cause}", "a whole image", "open it again"
                ) from error.cause
        file = _file(picture)
        try:
            return _read(file, file.opened(), max_pixels, upright, asked)
        except _Unreadable as error:
            again = pixels_alone(file.content()) if file.size <= MAX_REWRITTEN_BYTES else None
            if again is None:
                raise error.as_image_error(file) from error.cause
        try:
            array = _read(file, io.BytesIO(again), max_pixels, upright, asked)
        except _Unreadable as error:
            raise error.as_image_error(file) from error.cause
    log.info("%s holds metadata that cannot be read and was passed over", file.name)
    return array


@dataclass(frozen=True)
class _File:
    """A picture's file: its path, or its content, read already.

    Attributes:
        name: how errors call it; size: in bytes, at least 1.
    """

    source: Path | bytes
    name: str
    size: int

    def opened(self) -> Path | io.BytesIO:
        """What Pillow takes."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source

    def content(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def head(self) -> bytes:
        with io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb") as file:
            return file.read(HEADER_BYTES)


def _file(picture: object) -> _File:
    file = _File(picture, GIVEN, len(picture)) if isinstance(picture, bytes) else _file_at(picture)
    if file.size == 0:
        raise ImageError(f"{file.name} is empty (0 bytes)", "an image file", "copy or download the picture again")
    return file


def _file_at(picture: object) -> _File:
    try:
        path = Path(picture)  # type: ignore[arg-type]
        is_file = path.is_file()
    except (TypeError, ValueError, OSError) as error:  # ValueError: a null character; OSError: a name longer than any may be
        raise ImageError(
            f"{shortened(picture)} is no picture",
            "a path, the bytes of a file, a PIL image or a uint8 array",
            "pass one of them",
        ) from error
    if not is_file and _ADDRESS.match(str(path)):
        raise ImageError(
            f"{shortened(str(path))} is an address", "a file on this machine", "download or decode it, and give the file"
        )
    if not is_file:
        raise ImageError(f"{path} is no file", "an image file", "check the path")
    try:
        with path.open("rb"):
            return _File(path, str(path), path.stat().st_size)
    except OSError as error:
        raise ImageError(f"{path} cannot be opened: {error}", "a file that may be read", "check its permissions") from error


class _Unreadable(Exception):
    """Pillow failed.

    Attributes:
        damaged: the format was recognised.
    """

    def __init__(self, cause: Exception, damaged: bool) -> None:
        super().__init__(str(cause))
        self.cause, self.damaged = cause, damaged

    def as_image_error(self, file: _File) -> ImageError:
        if self.damaged:
            return ImageError(
                f"{file.name} is damaged: {str(self.cause)[:200]}",
                "a whole image file",
                "copy or download the picture again",
            )
        kind = kind_of(file.head())
        return ImageError(
            f"{file.name} cannot be read as an image" + (f": it is {kind}" if kind else ""),
            f"a file whose content is {SHOWN}",
            "take frames of it, as JPEG or PNG" if kind.endswith("video") else "convert the picture to JPEG or PNG",
        )


def _read(file: _File, opened: Path | io.BytesIO, max_pixels: int, upright: bool, check: Check | None) -> np.ndarray:
    """A file's pixels; ``opened`` is what Pillow reads of it."""
    try:
        image = Image.open(opened, formats=formats())
    except Image.DecompressionBombError as error:
        raise _too_large(file.name, str(error), max_pixels) from error
    except Exception as error:  # a damaged header raises whatever its decoder stumbles over
        raise _Unreadable(error, damaged=False) from error
    with image:
        if image.size[0] * image.size[1] <= max_pixels and not holds_its_pixels(image, file.size):
            claimed = f"{file.size:,} bytes cannot hold the {image.size[0]} x {image.size[1]} pixels that its header claims"
            raise _Unreadable(ValueError(claimed), damaged=True)
        return _decoded(image, file.name, max_pixels, upright, check)


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
