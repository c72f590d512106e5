"""A package as Triton's Python backend wants a model: ``initialize``, ``execute``, ``finalize``.

Triton hands requests over as they come and waits for none of them (a decoupled model): the slots of
`runtime_py.engine` are what works at many at a time. Requests are read in threads of their own, responses are sent by one
thread, so that the engine's never waits for Triton, and one thread looks after clients that left and requests that take
too long.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runtime_py.engine.answer import Answer, Token
from runtime_py.engine.logprobs import Event
from runtime_py.engine.service import Service, Sizes
from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.files.json_file import MEGABYTE
from runtime_py.model import Model, load
from runtime_py.package import read, selftest
from runtime_py.serving.pictures import PictureLimits
from runtime_py.serving.refusal import Refusal, of_error
from runtime_py.serving.room import Reservation, Room
from runtime_py.triton import PACKAGE
from runtime_py.triton.answering import OUTPUTS, Answering
from runtime_py.triton.environment import check_numpy, choose_device
from runtime_py.triton.metrics import Metrics
from runtime_py.triton.question import INPUTS, STREAM, Reader, Tensors
from runtime_py.triton.settings import AUTO, ModelSettings, settings_of

READERS = 2
LOOK_SECONDS = 0.05
PATIENCE = 20.0
"""Seconds for the answers at work when the model is unloaded; Triton itself waits 30 (--exit-timeout-secs)."""


class TritonModel:
    """One instance of a model; Triton calls its methods from one thread.

    Args:
        utilities: the module ``triton_python_backend_utils``, which only Triton's stub has.
    """

    def __init__(self, utilities: Any) -> None:
        self._utilities = utilities
        self._open: set[Answering] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._outgoing: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the package, answer its own sample, and begin to take requests.

        Raises:
            EdgeproofError: Triton logs it and the model is not ready: NumPy 2 under a stub for NumPy 1, a package that is
                damaged or fits no backend of this machine, an answer that is not the recorded one.
        """
        import numpy as np

        check_numpy(np.__version__)
        kind = args.get("model_instance_kind", "CPU")
        choose_device(kind, args.get("model_instance_device_id", "0"))
        self.settings = settings_of(json.loads(args["model_config"]))
        folder = Path(args["model_repository"]) / args["model_version"] / PACKAGE
        self.model = open_package(folder, self.settings, kind == "GPU", self._utilities.Logger.log_warn)
        if self.settings.warm_up:
            selftest.require(self.model)
        opened, chosen = self.model, self.settings
        sizes = Sizes(chosen.slots, chosen.queue, chosen.prefill_chunk)
        self.service = Service(opened.package, opened.backend, opened.processor, opened.tokenizer, sizes)
        self._most = len(self.service.engine.slots) + chosen.queue
        limits = PictureLimits(
            count=chosen.max_images,
            bytes=chosen.max_image_mb * MEGABYTE,
            pixels=chosen.max_megapixels * 1_000_000,
            check=opened.check_picture,
        )
        self._reader = Reader(self.service, limits, chosen.max_request_mb * MEGABYTE)
        self._room, self._pixels = Room(), limits.pixels
        labels = {"model": args["model_name"], "version": args["model_version"], "instance": args["model_instance_name"]}
        self.metrics = Metrics(self._utilities, self.service, labels)
        self._readers = ThreadPoolExecutor(READERS, "reader")
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send_all, self._look_after)]
        for thread in self._threads:
            thread.start()
        slots = len(self.service.engine.slots)
        self._utilities.Logger.log_info(
            f"{args['model_name']}: {opened.package.precision} by {opened.backend.name}, {slots} slots"
            + (f"; {self.service.engine.notice}" if self.service.engine.notice else "")
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; their answers are sent later."""
        for request in requests:
            held = Reservation(self._room, self._pixels)
            tensors, fault = self._tensors(request)
            deadline = time.monotonic() + self._seconds(request)
            wanted = [name for name in request.requested_output_names() if name in OUTPUTS]
            sender = request.get_response_sender()
            answering = Answering(self._utilities, sender, tensors.stream, wanted, held, deadline, self._ended)
            with self._lock:
                if fault is None and len(self._open) >= self._most:
                    fault = Refusal(429, f"{self._most} requests are being answered or waiting; try again later")
                if fault is None:
                    self._open.add(answering)
            if fault is None:
                self._readers.submit(self._ask, tensors, answering, held)
            else:
                self._outgoing.put(partial(answering.refuse, fault))

    def finalize(self) -> None:
        """Give answers at work some seconds, then let go of everything."""
        self._readers.shutdown()
        self.service.close(PATIENCE)
        self._closing.set()
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join()
        self.metrics.close()
        self.model.close()

    def _tensors(self, request: Any) -> tuple[Tensors, Refusal | None]:
        """The inputs and parameters, copied: Triton may give their memory to another request once `execute` has returned."""
        strings: dict[str, list[bytes]] = {}
        stream = False
        try:
            for tensor in request.inputs():
                name = tensor.name()
                if name == STREAM:
                    stream = bool(tensor.as_numpy().reshape(-1)[:1].any())
                elif name in INPUTS:
                    strings[name] = [bytes(value) for value in tensor.as_numpy().reshape(-1)]
            parameters = json.loads(request.parameters() or "{}")
        except Exception as error:  # of one request: the others go on
            return Tensors({}), Refusal(400, f"the inputs cannot be read: {type(error).__name__}: {error}")
        return Tensors(strings, stream, parameters), None

    def _seconds(self, request: Any) -> float:
        """The server's time limit, or the request's own (microseconds, as Triton has it) where that is shorter."""
        asked = int(request.timeout())
        return min(float(self.settings.timeout_s), asked / 1e6) if asked > 0 else float(self.settings.timeout_s)

    def _ask(self, tensors: Tensors, answering: Answering, held: Reservation) -> None:
        def send(event: Event) -> None:
            self._outgoing.put(partial(deliver, event, answering))

        try:
            question = self._reader.read(tensors, held)
            if not answering.over:
                answering.ticket = self.service.ask(question, send)
                if answering.over:  # between the two lines above
                    answering.ticket.cancel()
        except Refusal as error:
            refusal = error
        except EdgeproofError as error:
            refusal = of_error(error)
        except Exception as error:
            self._utilities.Logger.log_error(f"a request could not be read: {type(error).__name__}: {error}")
            refusal = Refusal(500, f"a fault of the server ({type(error).__name__})")
        else:
            return
        self._outgoing.put(partial(answering.refuse, refusal))

    def _ended(self, answering: Answering, outcome: str, answer: Answer | None) -> None:
        with self._lock:
            self._open.discard(answering)
        self.metrics.ended(outcome, answer)

    def _send_all(self) -> None:
        while (work := self._outgoing.get()) is not None:
            try:
                work()
            except Exception as error:  # of one request: the others go on
                self._utilities.Logger.log_error(f"a response could not be sent: {type(error).__name__}: {error}")

    def _look_after(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            with self._lock:
                at_work = list(self._open)
            for answering in at_work:
                self._outgoing.put(answering.look)
            self._outgoing.put(self.metrics.look)


def deliver(event: Event, answering: Answering) -> None:
    """Hand an event of the engine to its request."""
    if isinstance(event, Token):
        answering.token(event)
    elif isinstance(event, Answer):
        answering.finish(event)
    else:
        answering.refuse(of_error(event))


@dataclass(frozen=True)
class Opening:
    """One way to open a package."""

    backend: str
    providers: tuple[str, ...] = ()


def ways(manifest: Mapping[str, Any], settings: ModelSettings, gpu: bool) -> list[Opening]:
    """How a package may be opened, best first: on a GPU what needs one, then providers that use it, then the processor."""
    from runtime_py.backends.record import Ability
    from runtime_py.backends.registry import held_backends

    held = held_backends(manifest)
    if settings.backend != AUTO:
        held = [record for record in held if record.runtime_name == settings.backend]
    needing = [Opening(record.runtime_name) for record in held if not record.can(Ability.WITHOUT_DEVICE)]
    plain = [Opening(record.runtime_name) for record in held if record.can(Ability.WITHOUT_DEVICE)]
    if not gpu:
        return plain
    return [*needing, *(Opening(each.runtime_name, each.gpu_providers) for each in held if each.gpu_providers), *plain]


def open_package(folder: Path, settings: ModelSettings, gpu: bool, tell: Callable[[str], None]) -> Model:
    """The package in the first way that opens on this machine.

    Args:
        tell: is told of each way that did not open, and why.

    Raises:
        EdgeproofError: none opens, or the package is damaged.
    """
    last: EdgeproofError = UsageError(
        f"{folder} holds nothing that backend {settings.backend!r} runs here", "another one", "correct config.pbtxt"
    )
    for way in ways(read(folder).manifest, settings, gpu):
        try:
            return load(folder, way.backend, settings.verify, settings.threads, way.providers or None, trust=True)
        except MachineError as error:
            last = error
            tell(f"{folder}: {way.backend} {' '.join(way.providers)} does not open here: {error.what}")
    raise last
