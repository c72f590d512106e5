"""Remote pictures: fetched from where they may be, refused from everywhere else."""

from __future__ import annotations

import base64
import gc
import http.server
import io
import socket
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from runtime_py.serving.pictures import PictureLimits, base64_exceeds, decoded, fetched, picture_at, public
from runtime_py.serving.refusal import Refusal

LIMITS = PictureLimits(bytes=100_000, remote=True, seconds=2.0)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not public(address)


def test_addresses_that_are() -> None:
    assert all(public(address) for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"))


def png_in_base64() -> tuple[bytes, str]:
    """A PNG whose length leaves padding, and its base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(buffer, "PNG")
    content = buffer.getvalue()
    content += bytes((1 - len(content)) % 3)
    return content, base64.b64encode(content).decode()


def test_base64_may_be_escaped_as_urls_are() -> None:
    """JavaScript's encodeURIComponent does it."""
    content = png_in_base64()[0] + b"\xfb\xef\xbe\xff\xff\xff?"
    text = base64.b64encode(content).decode()
    assert {"+", "/", "="} <= set(text)
    for form in (quote(text, safe=""), quote(text, safe="").replace("%2B", "%2b"), f"{text[:40]}%0A{text[40:]}%20"):
        assert "%" in form and picture_at(f"data:image/png;base64,{form}", LIMITS).shape == (7, 9, 3)


def test_base64url_is_refused_by_its_letters() -> None:
    text = base64.urlsafe_b64encode(png_in_base64()[0] + b"\xfb\xef\xbe").decode()
    with pytest.raises(Refusal, match=r"letters, digits, \+ and / are expected, not the - and _ of base64url"):
        picture_at(f"data:image/png;base64,{text}", LIMITS)


def test_base64_may_have_line_ends_and_lack_its_padding() -> None:
    content, text = png_in_base64()
    assert text.endswith("==")
    wrapped = base64.encodebytes(content).decode()
    for form in (text, wrapped, wrapped.replace("\n", "\r\n"), " " + text, text.rstrip("=")):
        assert picture_at(f"data:image/png;base64,{form}", LIMITS).shape == (7, 9, 3)


@pytest.mark.parametrize(
    "head",
    [
        "data:image/jpg;base64",
        "data:;base64",
        "DATA:IMAGE/PNG;BASE64",
        "data:image/png;name=a.png;base64",
        "data:image/png; charset=utf-8; base64",
    ],
)
def test_a_data_url_has_any_type_parameters_case_and_spaces_behind_semicolons(head: str) -> None:
    assert picture_at(f"{head},{png_in_base64()[1]}", LIMITS).shape == (7, 9, 3)


@pytest.mark.parametrize("spoilt", ["{text}=", "{text}!", "{text}\u00e9", "{text}\ud800", "A", "%41", "-_-_"])
def test_base64_that_is_none_is_refused(spoilt: str) -> None:
    with pytest.raises(Refusal, match="no base64"):
        picture_at("data:image/png;base64," + spoilt.format(text=png_in_base64()[1]), LIMITS)


@pytest.mark.parametrize("most", [99, 100, 101])
def test_the_length_of_base64_tells_what_it_stands_for(most: int) -> None:
    """What may be small enough is decoded, however its lines end."""
    for size in range(most - 3, most + 4):
        encoded = base64.encodebytes(b"x" * size)
        for text in (encoded, encoded.decode(), encoded.replace(b"\n", b"\r\n\t\f "), encoded.rstrip(b"=\n")):
            exceeds = base64_exceeds(text, most)
            assert not exceeds if size <= most else exceeds or -(-size // 3) == -(-most // 3), (size, text)


def test_base64_that_is_too_long_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_py.serving.pictures.of_base64", lambda text: pytest.fail("decoded"))
    with pytest.raises(Refusal, match="larger than 100,000 bytes") as refused:
        picture_at("data:image/png;base64," + "A" * 133_340, LIMITS)
    assert (refused.value.status, refused.value.param) == (413, "messages")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f000001", "2130706433", "127.1"])
def test_this_machine_is_not_fetched_from_however_it_is_written(host: str) -> None:
    with pytest.raises(Refusal, match=r"not on the public internet|not known"):
        fetched(f"http://{host}:9/a.png", LIMITS)


@pytest.mark.parametrize("url", ["http://", "http://user:pw@8.8.8.8/", "http://[::1", "http://8.8.8.8:99999/"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(Refusal):
        fetched(url, LIMITS)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /away leads elsewhere, /slow dribbles its body and /head its headers, for four seconds."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/")
            self.end_headers()
        elif self.path in {"/slow", "/head"}:
            self.send_response(200)
            if self.path == "/slow":
                self.end_headers()
            self.flush_headers()
            for _ in range(40):
                time.sleep(0.1)
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("pictures")
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / "a.png")
    (folder / "large").write_bytes(b"x" * 200_000)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *given: Handler(*given, directory=str(folder)),  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_may_be_fetched_is_and_nothing_else(elsewhere: str) -> None:
    permitted = replace(LIMITS, permitted=lambda address: True)
    np.testing.assert_array_equal(
        picture_at(f"{elsewhere}/a.png", permitted), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    )
    for path, said in (("/none", "404"), ("/away", "302"), ("/large", "larger than"), ("/slow", "TimeoutError")):
        with pytest.raises(Refusal, match=said):
            fetched(elsewhere + path, replace(permitted, seconds=1.0))
    began = time.monotonic()
    with pytest.raises(Refusal, match="TimeoutError"):
        fetched(f"{elsewhere}/head", replace(permitted, seconds=0.5))
    assert time.monotonic() - began < 3, "headers that dribble are given up on too"
    with pytest.raises(Refusal, match="not on the public internet"):
        picture_at(f"{elsewhere}/a.png", LIMITS)
    with pytest.raises(Refusal, match="not fetched here"):
        picture_at(f"{elsewhere}/a.png", replace(permitted, remote=False))
    with pytest.raises(Refusal, match="not fetched here"):
        picture_at("HTTPS://example.com/a.png", replace(permitted, remote=False))


def test_a_server_without_tls_is_refused_and_its_connection_closed(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []
    connect = socket.create_connection

    def noted(*given: Any) -> socket.socket:
        opened.append(connect(*given))
        return opened[-1]

    monkeypatch.setattr("runtime_py.serving.pictures.socket.create_connection", noted)
    permitted = replace(LIMITS, permitted=lambda address: True)
    gc.collect()  # what others left
    with warnings.catch_warnings(record=True, action="always") as warned:
        with pytest.raises(Refusal, match="cannot be fetched: SSLError"):
            fetched(elsewhere.replace("http:", "https:") + "/a.png", permitted)
        gc.collect()
    assert opened[0].fileno() == -1, "TLS has taken it over"
    assert not warned, "no socket was left open for the collector"


def test_the_address_that_was_looked_at_is_the_one_connected_to(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere the second time it is asked (DNS rebinding) leads nowhere."""
    port = int(elsewhere.rpartition(":")[2])
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]])
    monkeypatch.setattr("runtime_py.serving.pictures.socket.getaddrinfo", lambda *given, **more: next(answers))
    connected: list[str] = []

    def connect(address: tuple[str, int], seconds: float) -> socket.socket:
        connected.append(address[0])
        raise OSError

    monkeypatch.setattr("runtime_py.serving.pictures.socket.create_connection", connect)
    with pytest.raises(Refusal, match="cannot be fetched"):
        fetched(f"http://rebinding.example:{port}/a.png", LIMITS)
    assert connected == ["8.8.8.8"]


def test_a_picture_is_opened_as_everywhere_else(tmp_path: Path, picture: np.ndarray) -> None:
    """A comment that cannot be read does not stand in the pixels' way, and the size is asked about once."""
    Image.fromarray(picture).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    place = whole.index(b"IDAT") - 4
    comment = (4).to_bytes(4, "big") + b"tEXt" + b"a\0bc" + b"\0\0\0\0"  # another checksum
    asked: list[tuple[int, int]] = []
    limits = PictureLimits(check=lambda name, width, height: asked.append((width, height)))
    np.testing.assert_array_equal(decoded(whole[:place] + comment + whole[place:], limits), picture)
    with pytest.raises(Refusal, match="damaged"):  # after a second look, without its metadata
        decoded(whole[: len(whole) // 2], limits)
    assert asked == [picture.shape[1::-1]] * 2


def test_a_small_file_that_claims_many_pixels_is_refused_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 8000, 8000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(Refusal, match="bytes cannot hold the 8000 x 8000 pixels"):
        decoded(bytes(content), PictureLimits())
    with pytest.raises(Refusal, match="cannot be read as an image: it is PDF"):
        decoded(b"%PDF-1.7", PictureLimits())
