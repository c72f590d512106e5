from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from runtime_py.errors import ImageError
from runtime_py.preprocess.pictures import open_picture

RED, BLUE = (200, 10, 20), (5, 30, 220)


def _two_tone() -> Image.Image:
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK"])
def test_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    _two_tone().convert(mode).save(path)
    picture = open_picture(path)
    assert picture.dtype == np.uint8 and picture.shape == (4, 8, 3)
    np.testing.assert_allclose(picture[0, 0], RED, atol=2)
    np.testing.assert_allclose(picture[0, 7], BLUE, atol=2)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_size_is_looked_at_before_a_pixel_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.new("RGB", (8, 8)).save(path)
    steps: list[str] = []
    load = ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> Any:
        steps.append("decoded")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    open_picture(path, check=lambda *_: steps.append("checked"))
    assert steps[0] == "checked" and "decoded" in steps


def test_a_check_is_told_the_width_and_the_height_that_are_read(tmp_path: Path) -> None:
    path, told = tmp_path / "a.jpg", list[tuple[str, int, int]]()
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    _two_tone().save(path, exif=on_its_side)

    def check(name: str, width: int, height: int) -> None:
        told.append((name, width, height))

    for picture in (path, path.read_bytes(), _two_tone(), np.asarray(_two_tone())):
        open_picture(picture, check=check)
    given = "the given image"
    assert told == [(str(path), 8, 4), (given, 8, 4), (given, 8, 4), ("the given array", 8, 4)]
    assert open_picture(path, upright=True, check=check).shape == (8, 4, 3) and told[-1] == (str(path), 4, 8)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (*RED, 0)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png")[0, 0], RED)


def test_palette_and_grey_with_alpha(tmp_path: Path) -> None:
    _two_tone().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "p.png")[0, 7], BLUE)
    Image.new("LA", (2, 2), (77, 10)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "la.png")[0, 0], (77, 77, 77))


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F", "La", "RGBa", "RGBX")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_what_the_published_call_gives(mode: str, picture: np.ndarray) -> None:
    wide = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in wide:
        image = Image.fromarray(picture[..., 0].astype(wide[mode]) * 200)
    else:
        image = Image.fromarray(picture).convert(mode if mode not in {"La", "RGBa", "PA", "LAB"} else "RGBA")
    np.testing.assert_array_equal(open_picture(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("bits.png", "1"),
        ("bits.tiff", "1"),
        ("deep.png", "I;16"),
        ("deep.tiff", "I;16"),
        ("grey-alpha.png", "LA"),
        ("palette.png", "P"),
        ("palette.gif", "P"),
        ("alpha.webp", "RGBA"),
        ("print.jpg", "CMYK"),
        ("print.tiff", "CMYK"),
        ("plain.ppm", "RGB"),
        ("plain.bmp", "RGB"),
    ],
)
def test_every_mode_of_a_file_gives_what_the_published_call_gives(
    tmp_path: Path, picture: np.ndarray, name: str, mode: str
) -> None:
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    image = deep if mode == "I;16" else Image.fromarray(picture).convert(mode)
    transparent: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    image.save(tmp_path / name, **transparent)
    np.testing.assert_array_equal(open_picture(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))


def test_sixteen_bits_are_clipped_as_published_and_the_user_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(np.array([[0, 128, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    for _ in range(2):
        np.testing.assert_array_equal(open_picture(tmp_path / "deep.png")[0, :, 0], [0, 128, 255])
    assert [record.getMessage().count("16 bits") for record in caplog.records if record.levelname == "WARNING"] == [1]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(open_picture(tmp_path / "a.gif")[0, 0], RED, atol=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1)])
def test_extreme_sizes_open(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").shape == (size[1], size[0], 3)


def test_arrays_and_images_are_taken(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(open_picture(picture), picture)
    np.testing.assert_array_equal(open_picture(Image.fromarray(picture)), picture)
    grey = picture[..., 0]
    for form in (grey, grey[..., None]):
        np.testing.assert_array_equal(open_picture(form), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(open_picture(np.dstack([picture, grey])), picture)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10000, 10000), (60000, 60000)])
def test_a_picture_of_many_pixels_is_refused_from_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "bomb.png").write_bytes(_png_header(*size))
    with pytest.raises(ImageError, match="too large") as caught:
        open_picture(tmp_path / "bomb.png")
    assert "64,000,000" in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    empty, text, cut, head = (tmp_path / name for name in ("empty.png", "text.png", "cut.jpg", "head.jpg"))
    empty.touch()
    text.write_text("no image")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(cut, quality=95)
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    head.write_bytes(whole[:100])
    cases = {
        empty: "0 bytes",
        text: "cannot be read",
        cut: "damaged",
        head: "cannot be read",
        tmp_path / "no.png": "no file",
    }
    for path, words in cases.items():
        with pytest.raises(ImageError, match=words) as caught:
            open_picture(path)
        assert path.name in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_random_damage_gives_a_picture_or_one_kind_of_error(tmp_path: Path, picture: np.ndarray, kind: str) -> None:
    path = tmp_path / "whole"
    Image.fromarray(picture).save(path, kind)
    whole, draw = path.read_bytes(), np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole[: int(draw.integers(1, len(whole) + 1))])
        for place in draw.integers(0, min(len(damaged), 200), 3):
            damaged[place] = int(draw.integers(256))
        path.write_bytes(damaged)
        try:
            assert open_picture(path).shape[2] == 3
        except ImageError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((3, 4, 5), np.uint8), np.zeros((4,), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError):
        open_picture(array)
    with pytest.raises(ImageError, match="too large"):
        open_picture(np.zeros((10, 11, 3), np.uint8), max_pixels=100)


@pytest.mark.parametrize("size", [(8000, 8000), (60, 900_000)])
def test_a_small_file_that_claims_many_pixels_is_damaged(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "claims.png").write_bytes(_png_header(*size))
    with pytest.raises(ImageError, match=rf"bytes cannot hold the {size[0]} x {size[1]} pixels"):
        open_picture(tmp_path / "claims.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_pictures_of_one_colour_are_small_and_whole(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3000, 2000)).save(tmp_path / "plain.png", compress_level=9, optimize=True)
    assert (tmp_path / "plain.png").stat().st_size < 40_000
    assert open_picture(tmp_path / "plain.png").shape == (2000, 3000, 3)


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_a_picture_without_a_pixel_is_refused(size: tuple[int, int]) -> None:
    for picture in (Image.new("RGB", size), np.zeros((*size, 3), np.uint8)):
        with pytest.raises(ImageError) as refused:
            open_picture(picture)
        assert refused.value.expected == "at least 1 x 1"


def test_a_name_longer_than_any_may_be_is_no_picture() -> None:
    with pytest.raises(ImageError, match="is no picture"):
        open_picture("x" * 300 + ".png")


@pytest.mark.parametrize(
    "address", ["https://a.org/b.png", Path("http://a.org/b.png"), "data:image/png;base64,iVBO", "FILE:///b"]
)
def test_addresses_are_told_from_paths(address: str | Path) -> None:
    with pytest.raises(ImageError, match="is an address"):
        open_picture(address)
