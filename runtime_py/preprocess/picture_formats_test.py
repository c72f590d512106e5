"""Only formats on the list are opened, whatever a file is called, and nothing else is started."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from runtime_py.errors import ImageError
from runtime_py.preprocess.picture_formats import FORMATS, formats
from runtime_py.preprocess.pictures import open_picture

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
(ran) (w) file closefile
showpage
%%EOF
"""


def test_a_program_in_a_picture_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def record(*command: object, **_: object) -> None:
        started.append(command)
        raise OSError("no program runs here")

    for name in ("check_call", "Popen", "run"):
        monkeypatch.setattr(subprocess, name, record)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(shutil, "which", lambda *_: "/usr/bin/gs")
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with pytest.raises(OSError, match="no program"):
        Image.open(tmp_path / "photo.jpg").load()
    assert len(started) == 1, "Pillow itself starts Ghostscript for this file"
    with pytest.raises(ImageError, match="it is EPS") as refusal:
        open_picture(tmp_path / "photo.jpg")
    assert "JPEG, PNG" in str(refusal.value)
    assert len(started) == 1


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind in formats()])
def test_the_content_decides_and_not_the_name(tmp_path: Path, picture: np.ndarray, kind: str) -> None:
    path = tmp_path / "photo.eps"
    Image.fromarray(picture).save(path, kind)
    np.testing.assert_array_equal(open_picture(path), np.asarray(Image.open(path, formats=[kind]).convert("RGB")))


def test_pairs_of_cameras_give_their_first_picture(tmp_path: Path, picture: np.ndarray) -> None:
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    first.save(tmp_path / "pair.jpg", "MPO", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "pair.jpg").format == "MPO"
    whole = (tmp_path / "pair.jpg").read_bytes()
    alone = Image.open(io.BytesIO(whole[: whole.index(b"\xff\xd8", 2)]), formats=["JPEG"])
    np.testing.assert_array_equal(open_picture(tmp_path / "pair.jpg"), np.asarray(alone.convert("RGB")))


@pytest.mark.parametrize("kind", ["DDS", "JPEG2000", "ICO", "TGA", "SGI", "PCX", "PDF", "ICNS", "IM", "SPIDER", "XBM"])
def test_other_formats_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    image = Image.new("F" if kind == "SPIDER" else "1" if kind == "XBM" else "RGB", (16, 16))
    image.save(tmp_path / "photo.bin", kind)
    (tmp_path / "photo.bin").rename(path)
    with pytest.raises(ImageError, match="cannot be read as an image") as refusal:
        open_picture(path)
    assert "convert the picture to JPEG or PNG" in refusal.value.next_step


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it is HEIF"),
        (b"%PDF-1.7\n", "it is PDF"),
        (b"<svg xmlns=", "it is SVG"),
        (b"\xef\xbb\xbf<svg xmlns=", "it is SVG"),
        (b"\n  <SVG xmlns=", "it is SVG"),
        (b"<!doctype html><html>404", "it is HTML"),
        (b'{"error": "not found"}', "it is JSON"),
        (b"data:image/png;base64,", "it is a data URL"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "it is JPEG XL"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "it is an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "it is a Matroska or WebM video"),
    ],
)
def test_what_people_send_otherwise_is_named(tmp_path: Path, head: bytes, named: str) -> None:
    (tmp_path / "IMG_0001.jpg").write_bytes(head + bytes(100))
    with pytest.raises(ImageError, match=named):
        open_picture(tmp_path / "IMG_0001.jpg")


def test_a_pillow_without_a_format_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: how for name, how in Image.OPEN.items() if name != "AVIF"})
    formats.cache_clear()
    try:
        assert formats() == tuple(name for name in FORMATS if name != "AVIF")
    finally:
        formats.cache_clear()
