"""Pictures of a request: data URLs decoded, remote ones fetched where that is allowed, all of them turned upright.

A remote address is looked up once, every address it has must be one of the public internet, and that one is connected to,
so that no name can lead to this machine or its network. Redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import numpy as np

from runtime_py.errors import ImageError
from runtime_py.files.json_file import shortened
from runtime_py.preprocess.extent import Check
from runtime_py.preprocess.pictures import open_picture
from runtime_py.serving.refusal import Refusal, invalid

PARAM = "messages"
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:; *[\w.+-]+=[^;,]*)*)(; *base64)?,", re.ASCII | re.IGNORECASE)
_URL_SAFE = re.compile(r"[\w-]*[-_]", re.ASCII).match
ESCAPED = {f"%{ord(letter):02X}": letter for letter in "+/=\t\n\f\r "}
"""What is escaped of base64 in a URL, which browsers take back first (WHATWG Fetch, "data: URL processor"). The
standard library's `unquote` takes two seconds for 20 MB of them."""

BASE64_SPACES = b"\t\n\f\r "


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    number = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(number, "ipv4_mapped", None) or getattr(number, "sixtofour", None)
    return number.is_global and not number.is_multicast and (inner is None or inner.is_global)


@dataclass(frozen=True)
class PictureLimits:
    """What a request's pictures may be.

    Attributes:
        count: in one request; bytes: of one as sent; pixels: of one, and of all of a request together.
        remote: fetch pictures by http and https.
        seconds: for each of three steps of fetching one: the connection, TLS's handshake, the request with its whole answer.
            The host's name is looked up before them, for as long as the system's resolver takes.
        permitted: which IP addresses may be connected to.
        check: refuses sizes that the model cannot take, from name, width and height.
    """

    count: int = 16
    bytes: int = 20 << 20
    pixels: int = 64_000_000
    remote: bool = False
    seconds: float = 10.0
    permitted: Callable[[str], bool] = public
    check: Check | None = None


def picture_at(url: str, limits: PictureLimits) -> np.ndarray:
    """uint8 RGB (height, width, 3) of the picture that a URL is or leads to.

    Raises:
        Refusal: another kind of URL, too large, not reached, or no picture.
    """
    if url[:5].lower() == "data:":
        content = _data(url, limits)
    elif url[:7].lower() == "http://" or url[:8].lower() == "https://":
        if not limits.remote:
            raise invalid(
                "pictures at remote addresses are not fetched here: send the picture itself as a data URL "
                "(data:image/jpeg;base64,...), or start the server with --allow-remote-images",
                PARAM,
                "remote_images_off",
            )
        content = fetched(url, limits)
    else:
        raise invalid(f"{shortened(url)} is no picture's URL: data:image/...;base64,... is expected", PARAM)
    return decoded(content, limits)


def decoded(content: bytes, limits: PictureLimits) -> np.ndarray:
    """uint8 RGB (height, width, 3), turned as the photograph's EXIF says.

    Raises:
        Refusal: no picture of `runtime_py.preprocess.picture_formats`, damaged, or too large for the limits or the model.
    """
    try:
        return open_picture(content, limits.pixels, upright=True, check=limits.check)
    except ImageError as error:
        raise invalid(f"a picture cannot be used: {error.what}. Expected: {error.expected}.", PARAM) from error


def _data(url: str, limits: PictureLimits) -> bytes:
    match = _DATA.match(url)
    if match is None or match[3] is None:
        raise invalid("a data URL is not of the form data:image/...;base64,...", PARAM)
    text = url[match.end() :]
    if "%" in text:
        for code, letter in ESCAPED.items():
            text = text.replace(code, letter).replace(code.lower(), letter)
    if base64_exceeds(text, limits.bytes):
        raise too_many_bytes(limits)
    try:
        content = of_base64(text.encode())
    except (binascii.Error, ValueError) as error:
        letters = "; letters, digits, + and / are expected" + (", not the - and _ of base64url" if _URL_SAFE(text) else "")
        raise invalid(f"a data URL is no base64: {error}{letters}", PARAM) from error
    if not content:
        raise invalid("a data URL is empty", PARAM)
    if len(content) > limits.bytes:
        raise too_many_bytes(limits)
    return content


def base64_exceeds(text: str | bytes, most: int) -> bool:
    """Whether base64 is so long that it stands for more than ``most`` bytes; nothing is copied or decoded to tell.

    Text that is up to two bytes over is told by decoding it alone.
    """
    over = len(text) - 4 * -(-most // 3)
    if over <= 0:
        return False
    spaces = map(text.count, BASE64_SPACES) if isinstance(text, bytes) else map(text.count, BASE64_SPACES.decode())
    return over > sum(spaces)


def of_base64(text: bytes) -> bytes:
    """What base64 stands for, with the line ends that encoders put in and without the padding that some leave out, as
    browsers read it (WHATWG Infra, "forgiving-base64 decode").

    Raises:
        ValueError: it is none.
    """
    text = text.translate(None, BASE64_SPACES)
    missing = 0 if text.endswith(b"=") else -len(text) % 4
    return base64.b64decode(text + b"=" * missing, validate=True)


def too_many_bytes(limits: PictureLimits, param: str = PARAM) -> Refusal:
    """The refusal of a picture of more bytes than ``limits`` allow, sent in the field ``param``."""
    return Refusal(413, f"a picture is larger than {limits.bytes:,} bytes", param=param, code="image_too_large")


def fetched(url: str, limits: PictureLimits) -> bytes:
    """The body at an http or https URL.

    Raises:
        Refusal: its host is not public, it does not answer 200 in time, or it is too large.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise invalid(f"{shortened(url)} is no URL: {error}", PARAM) from error
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise invalid(f"{shortened(url)} has no host, or a user name", PARAM)
    address = _address(parts.hostname, port, limits)
    try:
        with closing(_connection(parts, address, port, limits.seconds)) as connection, _within(limits.seconds, connection):
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "edgeproof", "Accept": "image/*"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise invalid(
                    f"{shortened(url)} answers {answer.status}; 200 is expected, redirects are not followed", PARAM
                )
            content = answer.read(limits.bytes + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise invalid(f"{shortened(url)} cannot be fetched: {type(error).__name__}", PARAM) from error
    if len(content) > limits.bytes:
        raise too_many_bytes(limits)
    return content


@contextmanager
def _within(seconds: float, connection: http.client.HTTPConnection) -> Iterator[None]:
    """End whatever is read or written of a connection after so many seconds: its own time-out starts anew with every byte.

    Raises:
        TimeoutError: it came to that.
    """
    late = threading.Event()
    plain = connection.sock

    def cut() -> None:
        late.set()
        with suppress(OSError):  # closed already
            socket.socket.shutdown(plain, socket.SHUT_RDWR)  # not TLS's own, which another thread may be reading through

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError


def _address(host: str, port: int, limits: PictureLimits) -> str:
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise invalid(f"the host {shortened(host)} is not known", PARAM) from error
    addresses = [str(row[4][0]) for row in rows]
    if not addresses or not all(limits.permitted(address) for address in addresses):
        raise invalid(f"the host {shortened(host)} is not on the public internet", PARAM, "private_address")
    return addresses[0]


def _connection(parts: SplitResult, address: str, port: int, seconds: float) -> http.client.HTTPConnection:
    """A connection to the address that was looked at, under the host's name."""
    host = parts.hostname or ""
    secure = ssl.create_default_context() if parts.scheme.lower() == "https" else None
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    plain = socket.create_connection((address, port), seconds)
    # wrap_socket takes the connection over, and closes it where the handshake fails
    connection.sock = plain if secure is None else secure.wrap_socket(plain, server_hostname=host)
    return connection
