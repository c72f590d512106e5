"""Which kinds of picture files are opened, told by their content and never by their name.

Pillow knows some forty formats. Several of them run other programs (EPS starts Ghostscript) or decoders that nobody needs
for photographs; a file of such a kind is refused whatever it is called.
"""

from __future__ import annotations

import codecs
from functools import cache

from PIL import Image

from runtime_py.files.json_file import LFS_POINTER

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is opened. JPEG covers MPO, the pairs of pictures that some cameras write; PPM covers PGM, PBM, PAM and PFM. AVIF
needs a Pillow that was built with it (11.3 and later)."""

SHOWN = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF"

HEADER_BYTES = 32
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
SURE = ("EPS", "PSD", "JPEG2000", "ICO", "ICNS", "DDS", "WMF")
"""Formats of Pillow's whose first bytes are theirs alone."""

_OTHERS = {b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\x1aE\xdf\xa3": "a Matroska or WebM video"}
_TEXTS = {b"%pdf": "PDF", b"<svg": "SVG", b"<?xml": "XML", b"<!doctype html": "HTML", b"<html": "HTML", b"{": "JSON"}
_TEXTS |= {b"data:": "a data URL", LFS_POINTER: "a Git LFS pointer"}
"""Beginnings in small letters, behind white space."""

DEFLATE_MOST = 1032
"""Bytes that one byte of a PNG's data can stand for at most (zlib.net/zlib_tech.html, "Maximum Expansion Factor")."""

PNG_BITS = {"RGB": 24, "RGBA": 32, "LA": 16, "I;16": 16}
"""Of a stored pixel at least, by mode; 1 of all others."""


def holds_its_pixels(image: Image.Image, file_bytes: int) -> bool:
    """Whether a file is large enough for the size in its header, as far as that can be told before decoding: of PNG."""
    width, height = image.size
    needed = width * height * PNG_BITS.get(image.mode, 1) // 8
    return image.format != "PNG" or needed <= file_bytes * DEFLATE_MOST


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def kind_of(head: bytes) -> str:
    """What another file seems to be, as far as its first `HEADER_BYTES` tell; "" where they do not. Nothing is decoded."""
    head = head.ljust(HEADER_BYTES, b"\0")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIF"
    if head[4:8] == b"ftyp":
        return "AVIF, which this Pillow was built without" if head[8:12] in _AVIF_BRANDS else "an MP4 or QuickTime video"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for begins, kinds in ((head, _OTHERS), (text, _TEXTS)):
        for start, name in kinds.items():
            if begins.startswith(start):
                return name
    Image.init()
    for name in SURE:
        accepts = Image.OPEN[name][1] if name in Image.OPEN else None
        if accepts is not None and accepts(head) is True:
            return name
    return ""
