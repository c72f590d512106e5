"""What a picture file says beside its pixels: the orientation is read, the rest must not stand in the pixels' way.

Pillow refuses a whole PNG for a bad checksum of a comment, or for a comment of more than a megabyte, and a TIFF for a bad
entry that no pixel needs. `pixels_alone` leaves such things out. JPEG, WebP and GIF files need nothing of the kind: their
metadata is read when it is asked for.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum

from PIL import Image

EXIF_ORIENTATION = 0x0112

PNG = b"\x89PNG\r\n\x1a\n"
ANCILLARY = 0x20
"""The bit of a PNG chunk's first letter that says that pixels can be decoded without it."""

TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
TIFF_PIXELS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347}
    | {*range(512, 520), 529, 530, 531, 532}
)
"""Tags of TIFF 6.0 without which pixels cannot be found or decoded."""

SHORT = 3


class Orientation(IntEnum):
    """EXIF's eight, by what must be done to the stored picture to see it upright."""

    UPRIGHT = 1
    MIRRORED = 2
    TURNED_180 = 3
    FLIPPED = 4
    TRANSPOSED = 5
    TURNED_RIGHT = 6
    TRANSVERSED = 7
    TURNED_LEFT = 8

    @property
    def swaps_sides(self) -> bool:
        return self >= Orientation.TRANSPOSED


_TURNS = {
    Orientation.MIRRORED: Image.Transpose.FLIP_LEFT_RIGHT,
    Orientation.TURNED_180: Image.Transpose.ROTATE_180,
    Orientation.FLIPPED: Image.Transpose.FLIP_TOP_BOTTOM,
    Orientation.TRANSPOSED: Image.Transpose.TRANSPOSE,
    Orientation.TURNED_RIGHT: Image.Transpose.ROTATE_270,
    Orientation.TRANSVERSED: Image.Transpose.TRANSVERSE,
    Orientation.TURNED_LEFT: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> Orientation:
    """How the camera was held, from EXIF or XMP; upright where neither says or can be read.

    Pillow turns TIFF files itself when they are decoded, for the published code too.
    """
    if image.format == "TIFF":
        return Orientation.UPRIGHT
    try:
        exif = Image.Image.getexif(image)  # PngImageFile's own decodes the picture first, before its size was looked at
        return Orientation(exif.get(EXIF_ORIENTATION, 1))
    except Exception:  # a parser of strangers' bytes: SyntaxError, struct.error, ValueError, TypeError and more were seen
        return Orientation.UPRIGHT


def turned(image: Image.Image, orientation: Orientation) -> Image.Image:
    """The picture as it was seen."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def pixels_alone(data: bytes) -> bytes | None:
    """A PNG or TIFF file without what its pixels do not need; None of another or of a cut file."""
    try:
        if data.startswith(PNG):
            return _png_pixels(data)
        order = TIFF_ORDERS.get(data[:4])
        return None if order is None else _tiff_pixels(data, order)
    except struct.error:
        return None


def _png_pixels(data: bytes) -> bytes:
    kept, place = [PNG], len(PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunk = data[place : place + 12 + length]
        name, body = chunk[4:8], chunk[8:-4]
        if len(name) < 4:
            break
        exif = name == b"eXIf" and zlib.crc32(name + body) == int.from_bytes(chunk[-4:], "big")
        if not name[0] & ANCILLARY or name == b"tRNS" or exif:
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _tiff_pixels(data: bytes, order: str) -> bytes:
    """The first directory alone, with the entries that pixels need, in its old place."""
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [entry for entry in entries if _pixels_need(entry, order)]
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + directory + data[start + len(directory) :]


def _pixels_need(entry: bytes, order: str) -> bool:
    tag, kind, count = struct.unpack(f"{order}HHI", entry[:8])
    return tag in TIFF_PIXELS or (tag == EXIF_ORIENTATION and (kind, count) == (SHORT, 1))
