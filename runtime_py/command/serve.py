"""``serve``: a package behind OpenAI's chat interface. The libraries it needs are imported when it runs."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError, UsageError
from runtime_py.files.json_file import MEGABYTE
from runtime_py.generation.limits import MOST_SLOTS, slots_for

if TYPE_CHECKING:
    from runtime_py.engine.service import Service, Sizes
    from runtime_py.model import Model
    from runtime_py.package import Package
    from runtime_py.serving.application import Serving

HOST, PORT = "127.0.0.1", 8000

CONNECTIONS = 1000
"""Open at a time; more are told 503."""

EXAMPLES = """\
examples:
  {prog} --package out
  {prog} --package out --host 0.0.0.0 --api-key-file keys.txt --slots 4 --threads 8

with the openai client: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

"""


def parser(prog: str) -> Parser:
    """The flags of ``serve``."""
    made = Parser(prog, "Answer OpenAI's chat interface over HTTP, many requests at a time.", EXAMPLES.format(prog=prog))
    flags.package(made, what=flags.FOLDER_OR_NAME)
    at_least_one = flags.whole_number(1)
    server = made.add_argument_group("the server")
    server.add_argument("--host", default=HOST, metavar="ADDRESS", help=f"address to listen at; default {HOST}")
    server.add_argument(
        "--port", type=flags.whole_number(0), default=PORT, metavar="N", help=f"0 takes a free one; default {PORT}"
    )
    server.add_argument("--model-name", metavar="NAME", help="how requests call the model; default its source's or family's")
    server.add_argument("--api-key-file", type=Path, metavar="FILE", help="a key a line; /v1 answers only bearers of one")
    server.add_argument(
        "--patience", type=flags.whole_number(0), default=30, metavar="S",
        help="seconds for answers at work when told to stop; default 30",
    )  # fmt: skip
    many = made.add_argument_group("many requests")
    many.add_argument(
        "--slots",
        type=flags.whole_number(1, MOST_SLOTS),
        metavar="N",
        help="answers at a time; default 8, or what `export --batch` planned for",
    )
    many.add_argument(
        "--queue", type=flags.whole_number(0), default=64, metavar="N", help="requests that may wait beside; default 64"
    )
    many.add_argument(
        "--prefill-chunk", type=at_least_one, default=128, metavar="N",
        help="tokens of a prompt read between two tokens of the others; default 128, at most the package's own",
    )  # fmt: skip
    limits = made.add_argument_group("what a request may be")
    limits.add_argument("--max-images", type=flags.whole_number(0), default=16, metavar="N", help="pictures; default 16")
    limits.add_argument("--max-image-mb", type=at_least_one, default=20, metavar="N", help="of one picture; default 20")
    limits.add_argument("--max-megapixels", type=at_least_one, default=64, metavar="N", help="of all pictures; default 64")
    limits.add_argument("--max-request-mb", type=at_least_one, default=64, metavar="N", help="of all; default 64")
    limits.add_argument("--timeout", type=at_least_one, default=600, metavar="S", help="seconds; default 600")
    limits.add_argument("--allow-remote-images", action="store_true", help="fetch pictures from the public internet")
    flags.running(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    import prometheus_client  # noqa: F401  (what is missing is said before a large package is loaded)
    import starlette  # noqa: F401
    import uvicorn

    from runtime_py.engine.service import Service
    from runtime_py.model import load
    from runtime_py.serving.application import application
    from runtime_py.serving.ending import EndingServer
    from runtime_py.serving.patience import PatientProtocol

    chosen = (options.backend, options.verify, options.threads, options.provider)
    keys = flags.keys(options.api_key_file)
    with (
        _listen(options.host, options.port) as listening,
        load(options.package, *chosen, trust=options.trust) as model,
        closing(Service(model.package, model.backend, model.processor, model.tokenizer, _sizes(options, model))) as service,
    ):
        serving = _serving(options, model, keys)
        config = uvicorn.Config(
            application(service, serving),
            http=PatientProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
        )
        server = EndingServer(config, service, options.patience)
        try:
            with server.capture_signals():  # whoever reads the line may stop it, while the loop is still on its way
                listening.listen(CONNECTIONS)  # whoever asks now waits until the loop runs
                _tell(options.host, listening.getsockname()[1], serving, service)
                server.run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn ends as it was asked to, and then raises the signal again
            console.say("stopped")
    return int(ExitCode.OK)


def _sizes(options: argparse.Namespace, model: Model) -> Sizes:
    from runtime_py.engine.service import Sizes

    return Sizes(options.slots or slots_for(model.package.limits.batch), options.queue, options.prefill_chunk)


def _serving(options: argparse.Namespace, model: Model, keys: list[str]) -> Serving:
    from runtime_py.serving.application import Serving
    from runtime_py.serving.chat import ServerLimits
    from runtime_py.serving.pictures import PictureLimits

    pictures = PictureLimits(
        count=options.max_images,
        bytes=options.max_image_mb * MEGABYTE,
        pixels=options.max_megapixels * 1_000_000,
        remote=options.allow_remote_images,
        check=model.check_picture,
    )
    limits = ServerLimits(pictures, options.max_request_mb * MEGABYTE, float(options.timeout))
    return Serving(options.model_name or model_name(model.package), limits, keys, float(options.patience))


def model_name(package: Package) -> str:
    """How requests call a package's model: its source's name at the hub, or its family."""
    source = package.manifest.get("source") or {}
    return str(source.get("id") or package.family)


def _tell(host: str, port: int, serving: Serving, service: Service) -> None:
    shown = f"[{host}]" if ":" in host else host
    slots = len(service.engine.slots)
    address, count = f"http://{shown}:{port}/", f"{slots} slot{'s' if slots > 1 else ''}"
    console.say(f"serving {serving.name} at {address}v1 with {count}; a page to ask with at {address}")
    if service.engine.notice:
        console.say(f"note: {service.engine.notice}")
    if not serving.keys and not _own_machine(host):
        console.say("note: whoever reaches this address may ask; --api-key-file asks for a key")


def _own_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that nobody is answered at yet.

    Raises:
        UsageError: there is no such port.
        MachineError: the address is not this machine's, or something else listens there.
    """
    if port >= 1 << 16:
        raise UsageError(f"port {port}", f"at most {(1 << 16) - 1}", "choose another --port")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind, number)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:  # the second of a name that no host can have
        raise MachineError(
            f"{host} port {port} cannot be listened at: {getattr(error, 'strerror', None) or error}",
            "a free port of this machine",
            "choose another --port or --host",
        ) from error
    return listening


COMMAND = Command(parser, _run, level=logging.WARNING)
