"""A real server in a thread of its own, over the exported demo package."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import runtime_py
from runtime_py.engine.service import Service, Sizes
from runtime_py.model import Model

NAME = "demo"
KEY = "a key"


@dataclass
class Server:
    """Where a running server is, and what it runs on."""

    port: int
    service: Service
    model: Model = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running_server(model: Model, sizes: Sizes, seconds: float = 60.0, keys: Sequence[str] = (KEY,)) -> Iterator[Server]:
    """A server that answers until the context ends."""
    import uvicorn

    from runtime_py.serving.application import Serving, application
    from runtime_py.serving.chat import ServerLimits
    from runtime_py.serving.patience import PatientProtocol
    from runtime_py.serving.pictures import PictureLimits

    pictures = PictureLimits(count=3, bytes=1 << 20, pixels=1_000_000, check=model.check_picture)
    service = Service(model.package, model.backend, model.processor, model.tokenizer, sizes)
    app = application(service, Serving(NAME, ServerLimits(pictures, 4 << 20, seconds), keys, patience=5.0))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, http=PatientProtocol, ws="none", log_config=None, access_log=False, lifespan="on")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Server(listening.getsockname()[1], service, model)
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def model(exported: Path) -> Iterator[Model]:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    with runtime_py.load(exported, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with running_server(model, Sizes(slots=4, queue=8, chunk=64)) as made:
        yield made


def data_url(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as the client of a browser sends it."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def question(text: str, *urls: str) -> list[dict[str, Any]]:
    """The messages of one question about pictures."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]
