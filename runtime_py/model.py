"""A loaded package that answers: pictures and messages in, text out token by token.

The key/value cache and the picture's features stay between calls. When a prompt begins like the last one, prompt and
answer together, only the tokens after the common beginning are fed; so a conversation costs its new turn alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from runtime_py import package, tokenizer
from runtime_py.backends.base import Backend, OpensAhead
from runtime_py.backends.choice import asked_backend, open_backend
from runtime_py.contracts import DECODER, EMBED
from runtime_py.engine.answer import Answer, AnswerStream, Timing, Token
from runtime_py.engine.engine import ANSWERING, Engine
from runtime_py.engine.logprobs import EngineEvent, resolve
from runtime_py.engine.preparation import Preparation
from runtime_py.engine.running import Running, Wish
from runtime_py.errors import EdgeproofError, PackageError, UsageError, wrap_errors
from runtime_py.files.json_file import shortened
from runtime_py.generation import conversation
from runtime_py.generation.conversation import Messages
from runtime_py.generation.generate import Finish, Overrides, Settings, settings_of
from runtime_py.generation.input_rows import Recorder
from runtime_py.generation.model_lock import ModelLock
from runtime_py.hub.download import package_folder
from runtime_py.package import trust as trusting
from runtime_py.preprocess.base import ImageInputs, Layout, Message, Processor
from runtime_py.preprocess.clips import joined, reads_clips, takes_clips
from runtime_py.preprocess.extent import PredictsExtent, check_extent
from runtime_py.preprocess.pictures import Picture
from runtime_py.preprocess.processors import make_processor

__all__ = ["Answer", "AnswerStream", "Finish", "Model", "Overrides", "Timing", "Token", "load"]


class Model:
    """Answers questions about pictures; made by `load`.

    Threads may share one: an answer of `chat` is finished before the next begins. A `generate` that another answer
    overtakes raises UsageError at its next token. Once closed it refuses everything.

    Attributes:
        upright: photographs are turned as EXIF says; the published code leaves them as they are stored.
    """

    def __init__(
        self,
        source: package.Package,
        backend: Backend,
        processor: Processor,
        words: tokenizer.Tokenizer,
        upright: bool = False,
    ) -> None:
        self.package = source
        self.backend = backend
        self.processor = processor
        self.tokenizer = words
        self.engine = Engine(backend, processor, source.limits)
        self.session = self.engine.slots[0].session
        self.upright = upright
        self._preparation = Preparation(self.session)
        self._answering: Running | None = None
        self._lock = ModelLock()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(
        self,
        messages: Messages,
        images: Sequence[Picture] = (),
        stream: Callable[[str], None] | None = None,
        overrides: Overrides | None = None,
        upright: bool | None = None,
    ) -> Answer:
        """The model's next answer.

        Args:
            messages: one question, or the turns so far (see runtime_py.generation.conversation.Messages).
            images: paths, bytes of files, PIL images or uint8 arrays; those of a turn are the frames of a clip for models of
                clips, and where clips are read one is a uint8 array (frames, height, width, 3).
            stream: called with each piece of text as it comes.
            overrides: sampling and limits apart from the package's defaults.
            upright: whether photographs are turned as EXIF says; None for what `load` was told.
        """
        if stream is not None and not callable(stream):
            raise UsageError(f"stream is {shortened(stream)}", "a function that takes text", "leave it out")
        with self._lock.held(ANSWERING):
            run = self.generate(messages, images, overrides, upright)
            for token in run:
                if stream is not None and token.text:
                    stream(token.text)
        assert run.answer is not None
        return run.answer

    def generate(
        self,
        messages: Messages,
        images: Sequence[Picture] = (),
        overrides: Overrides | None = None,
        upright: bool | None = None,
    ) -> AnswerStream:
        """The same as `chat`, token by token; the work happens while the result is iterated over."""
        with self._lock.guard("reading the question"):
            settings = settings_of(self.package.generation, overrides)
            if not isinstance(messages, str | list | tuple):
                raise UsageError(f"messages is {shortened(messages)}", "a text or a list of messages", "pass one of them")
            turned = self.upright if upright is None else upright
            if not isinstance(turned, bool):
                raise UsageError(f"upright is {shortened(turned)}", "True or False", "correct it, or leave it out")
            given = picture_list(images)
            turns, pictures = conversation.read(messages, given, turned, self.check_picture, reads_clips(self.processor))
            if takes_clips(self.processor):
                turns, pictures = joined(turns, pictures)
        run = AnswerStream(iter(()))
        run._tokens = self._lock.guard_each(self._answer(turns, pictures, settings, run), ANSWERING)
        return run

    def reset(self) -> None:
        """Forget the conversation: cache and picture features."""
        with self._lock.guard("forgetting the conversation"):
            self._forget()

    def close(self) -> None:
        """Give the memory back, once the answer at work is finished; closing again does nothing."""
        with self._lock.closing() as was_open:
            if was_open:
                self._forget()
                self.backend.close()

    def _forget(self) -> None:
        self._answering = None
        self.engine.forget()
        self._preparation.forget()

    def open_ahead(self, pictures: bool = True) -> None:
        """Begin to open what an answer needs, beside whatever is done next, where the backend can.

        Args:
            pictures: whether there will be some; a question without needs no tower.
        """
        if isinstance(self.backend, OpensAhead):
            self.backend.open_ahead(self.package.contracts if pictures else (EMBED, DECODER))

    def record(self, recorder: Recorder | None) -> None:
        """Send every probe of the following answers to ``recorder`` (see runtime_py.generation.input_rows.Recorder)."""
        self.session.recorder = recorder

    def check_picture(self, name: str, width: int, height: int) -> None:
        """Raise ImageError for a picture of a size that this model, or this machine, cannot take."""
        if isinstance(self.processor, PredictsExtent):
            check_extent(self.processor.extent(width, height), self.package.limits.context, name, width, height)

    def prompt_layout(self, turns: Sequence[Message], images: Sequence[ImageInputs]) -> Layout:
        """The prompt as the decoder will see it, after making sure that it fits the context."""
        return self._preparation.layout(turns, images)

    def _answer(
        self, turns: list[Message], pictures: list[np.ndarray], settings: Settings, run: AnswerStream
    ) -> Iterator[Token]:
        self.open_ahead(pictures=bool(pictures))
        prompt = self._preparation.prepare(turns, pictures)
        self.engine.drop_all()
        events: deque[EngineEvent] = deque()
        running = self._answering = Running(prompt, Wish(settings), self.tokenizer, events.append)
        self.engine.submit(running)
        while run.answer is None:
            running.stopped = run.stopped
            self.engine.step()
            while events:
                event = resolve(events.popleft())
                if isinstance(event, EdgeproofError):
                    raise event
                if isinstance(event, Answer):
                    run.answer = event
                    continue
                yield event
                if self._answering is not running:
                    raise UsageError(
                        "this answer was left for another one",
                        "one answer at a time",
                        "finish or drop it before the next call",
                    )


def picture_list(images: Sequence[Picture]) -> list[Picture]:
    """The pictures of a call.

    Raises:
        UsageError: one picture instead of a list of them, or no list at all.
    """
    single = isinstance(images, str | bytes | Path | Image.Image | np.ndarray)
    if single or not isinstance(images, Iterable):
        raise UsageError(f"images is {shortened(images)}", "a list of pictures", "put the picture in brackets: images=[...]")
    return list(images)


def load(
    path: str | Path,
    backend: str | None = None,
    verify: package.Depth = "full",
    threads: int = 0,
    providers: Sequence[str] | None = None,
    selftest: bool = False,
    trust: str | bool = False,
    upright: bool = False,
) -> Model:
    """Open a package, after checking its files.

    Args:
        path: its folder, or ``user/name[@revision]`` on the model hub, from which it is downloaded into the hub's cache
            (`runtime_py.hub.download`).
        backend: a runtime name of runtime_py.backends.registry; when None the one that has providers, where some are named,
            else the manifest's ``runtime_backend``.
        verify: ``full`` compares every file's SHA-256, ``size`` sizes alone, ``off`` nothing.
        threads: threads for computing; 0 leaves it to the backend.
        providers: ONNX Runtime execution providers, best first.
        selftest: run the package's own sample and refuse a package that answers it otherwise.
        trust: the SHA-256 of the package's manifest, which is compared, or True; needed for a package that brings code
            (backends ``mlc`` and ``trt``, and decoder libraries) and is not in the trust file (`runtime_py.package.trust`).
        upright: photographs are turned as EXIF says, where `Model.chat` is not told otherwise.

    Raises:
        UsageError, PackageError, MachineError, DoesNotFitError.
    """
    with wrap_errors("opening the package"):
        backend = asked_backend(backend, threads, providers)
        opened = package.read(package_folder(path, lambda known: trusting.require_known(known, backend, trust)))
        if verify == "full":  # compares the files that are code with all others
            trusting.require_known(opened, backend, trust)
        else:
            trusting.require(opened, backend, trust)
        package.verify(opened, verify)
        words = open_tokenizer(opened)
        processor = open_processor(opened, words)
        allowed = trusting.code_allowed(opened, backend, trust)
        made = open_backend(opened, backend, threads, providers, own_code=allowed)
        model = Model(opened, made, processor, words, upright)
        if selftest:
            from runtime_py.package.selftest import require

            require(model)
    return model


def open_tokenizer(opened: package.Package) -> tokenizer.Tokenizer:
    """The package's tokenizer, from files that the manifest lists.

    Raises:
        PackageError: there is none, it cannot be read, one of its files is no row of the manifest, or it gives ids that the
            model has no row for, which some backends would look up all the same.
    """
    for name in tokenizer.FILES:
        if os.path.lexists(opened.folder / name):
            opened.file(name)
    words, rows = tokenizer.load(opened.folder), _vocabulary(opened)
    if rows is not None and len(words.pieces) > rows:
        raise PackageError(
            f"the tokenizer of {opened.folder} gives ids up to {len(words.pieces) - 1}",
            f"ids below {rows}, the rows of the model's table",
            "export again, with the tokenizer that belongs to the weights",
        )
    return words


def _vocabulary(opened: package.Package) -> int | None:
    """Rows of the embedding table, as the decoder's contract says; None where it does not."""
    decoder = opened.contracts.get(DECODER)
    outputs = decoder.outputs if decoder is not None else ()
    rows = next((output.shape[-1] for output in outputs if output.name == "logits" and output.shape), None)
    return rows if isinstance(rows, int) else None


def open_processor(opened: package.Package, words: tokenizer.Tokenizer | None) -> Processor:
    """The family's processor, by its name in the manifest."""
    return make_processor(opened.processor, opened.runtime, words)
