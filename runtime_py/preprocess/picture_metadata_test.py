"""Orientation is told and turned as EXIF has it; trouble in metadata leaves a good picture good."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from runtime_py.preprocess.picture_metadata import EXIF_ORIENTATION, PNG, TIFF_PIXELS
from runtime_py.preprocess.pictures import open_picture


def _picture() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (5, 9, 3), dtype=np.uint8)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    return exif


def _file(kind: str, orientation: int = 1) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    told = PngImagePlugin.PngInfo()
    told.add_text("a", "plain")
    told.add_text("b", "packed" * 20, zip=True)
    told.add_itxt("c", "Unicode", zip=True)
    further: dict[str, dict[str, Any]] = {
        "PNG": {"pnginfo": told},
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 95, "comment": b"said"},
    }
    buffer = io.BytesIO()
    Image.fromarray(_picture()).save(buffer, kind, exif=_exif(orientation), icc_profile=profile, **further.get(kind, {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_when_asked_for_and_told_of_once_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, orientation: int
) -> None:
    path = tmp_path / "photo"
    path.write_bytes(_file(kind, orientation))
    with Image.open(path) as image:
        stored, seen = np.asarray(image.convert("RGB")), np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(open_picture(path, upright=True), seen)
    assert not caplog.records
    for _ in range(2):
        np.testing.assert_array_equal(open_picture(path), stored)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (orientation != 1)
    assert all(f"orientation {orientation}" in line and "--upright" in line and str(path) in line for line in told)


def test_pillow_turns_tiff_files_for_the_published_code_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "scan.tiff"
    path.write_bytes(_file("TIFF", 6))
    published = np.asarray(Image.open(path).convert("RGB"))
    assert published.shape == (9, 5, 3)
    for upright in (False, True):
        np.testing.assert_array_equal(open_picture(path, upright=upright), published)
    assert not caplog.records


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 11, reason="an older Pillow does not look there")
def test_orientation_in_xmp_counts(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(_picture()).save(tmp_path / "a.webp", xmp=xmp)
    assert open_picture(tmp_path / "a.webp", upright=True).shape == (9, 5, 3)


EXIF_BLOCKS = {
    "header gone": b"Exif\0\0" + bytes([0, 8, 0, 1]) + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0",
    "written as Python shows it": b"Exif\0\0" + repr(b"Exif\0\0MM\0*\0\0\0\x08").encode(),
    "offset beyond the end": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "empty": b"Exif\0\0",
    "orientation 9": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "orientation a text": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", EXIF_BLOCKS)
@pytest.mark.parametrize("upright", [False, True])
def test_broken_exif_is_no_damage(tmp_path: Path, kind: str, name: str, upright: bool) -> None:
    path = tmp_path / "photo"
    Image.fromarray(_picture()).save(path, kind, exif=EXIF_BLOCKS[name], quality=95)
    np.testing.assert_array_equal(open_picture(path, upright=upright), np.asarray(Image.open(path).convert("RGB")))


def _metadata(kind: str, whole: bytes) -> list[range]:
    """Where a file's metadata lies, by the rules of its format."""
    return list({"JPEG": _segments, "PNG": _chunks, "WEBP": _riff, "TIFF": _entries}[kind](whole))


def _segments(data: bytes) -> Iterator[range]:
    place = 2
    while data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        if 0xE1 <= data[place + 1] <= 0xED or data[place + 1] == 0xFE:
            yield range(place + 4, place + 2 + length)
        place += 2 + length


def _chunks(data: bytes) -> Iterator[range]:
    place = len(PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] not in (b"IHDR", b"IDAT", b"IEND"):
            yield range(place + 8, place + 12 + length)
        place += 12 + length


def _riff(data: bytes) -> Iterator[range]:
    place = 12
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        if data[place : place + 4] in (b"EXIF", b"ICCP"):
            yield range(place + 8, place + 8 + length)
        place += 8 + length + length % 2


def _entries(data: bytes) -> Iterator[range]:
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, place)[0] not in TIFF_PIXELS | {EXIF_ORIENTATION}:
            yield range(place + 2, place + 12)


WHOLE = {kind: _file(kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6), checked=st.booleans()
)
def test_no_byte_of_metadata_changes_or_hides_the_pixels(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]], checked: bool
) -> None:
    whole = WHOLE[kind]
    places = _metadata(kind, whole)
    free = [place for part in places for place in part]
    changed = bytearray(whole)
    for place, value in changes:
        changed[free[place % len(free)]] = value
    if kind == "PNG" and checked:
        for part in places:
            body = slice(part.start - 4, part.stop - 4)
            changed[part.stop - 4 : part.stop] = struct.pack(">I", zlib.crc32(bytes(changed[body])))
    path = tmp_path_factory.mktemp("metadata") / "photo"
    path.write_bytes(changed)
    np.testing.assert_array_equal(open_picture(path), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))


def test_a_long_comment_is_no_damage(tmp_path: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("prompt", "word " * (1 << 19), zip=True)
    Image.fromarray(_picture()).save(tmp_path / "made.png", pnginfo=told, exif=_exif(6))
    with pytest.raises(ValueError, match=r"(?i)too large"):
        Image.open(tmp_path / "made.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "made.png"), _picture())
    assert open_picture(tmp_path / "made.png", upright=True).shape == (9, 5, 3), "what can be read is still read"


def test_a_palette_is_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(_picture()).quantize(16).save(path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PLTE") + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Exception, match="cannot be read"):
        open_picture(path)
