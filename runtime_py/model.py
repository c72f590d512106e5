"""A loaded package that answers: pictures and messages in, text out token by token.

The key/value cache and the picture's features stay between calls. When a prompt begins like the last one, prompt and
answer together, only the tokens after the common beginning are fed; so a conversation costs its new turn alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from runtime_py import package, tokenizer
from runtime_py.backends.base import Backend
from runtime_py.backends.record import Ability, OpeningChoices
from runtime_py.backends.registry import held_backends, runtime_backend, runtime_backends, those_that_can
from runtime_py.contracts import DECODER
from runtime_py.errors import PackageError, UsageError
from runtime_py.files.json_file import shortened
from runtime_py.generation import conversation
from runtime_py.generation.conversation import Messages
from runtime_py.generation.generate import Finish, Generation, Overrides, Settings, settings_of
from runtime_py.generation.session import Recorder, Session
from runtime_py.generation.turns import Turns, last_resort
from runtime_py.hub.download import package_folder
from runtime_py.package import trust as trusting
from runtime_py.preprocess.base import ImageInputs, Layout, Message, Processor
from runtime_py.preprocess.extent import PredictsExtent, check_extent
from runtime_py.preprocess.pictures import Picture
from runtime_py.preprocess.processors import make_processor

ANSWERING = "answering"


@dataclass(frozen=True)
class Token:
    """One token of an answer; ``text`` may be empty while a character lacks bytes."""

    id: int
    text: str


@dataclass(frozen=True)
class Timing:
    """Where an answer's time went, in seconds; rates are tokens per second.

    Attributes:
        prompt_tokens: the whole prompt; ``kept_tokens`` of them were in the cache already.
        image_seconds: preprocessing and vision encoder; 0 when the picture was known.
        steps: decoder calls after the prefill, ``decode_seconds`` in all.
        first_token_seconds: from the call to the first token.
    """

    prompt_tokens: int
    kept_tokens: int
    answer_tokens: int
    steps: int
    image_seconds: float
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float

    @property
    def prefill_rate(self) -> float:
        return (self.prompt_tokens - self.kept_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_rate(self) -> float:
        return self.steps / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Answer:
    """A finished answer. ``text`` is stripped of white space at both ends, as the published chat functions do."""

    text: str
    ids: tuple[int, ...]
    finish: Finish
    timing: Timing


class AnswerStream:
    """Iterates over the answer's `Token`s; ``answer`` is there when the iteration has ended."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self.answer: Answer | None = None
        self.stopped = False

    def stop(self) -> None:
        """End the answer at its next token; safe to call from a signal handler or another thread."""
        self.stopped = True

    def __iter__(self) -> Iterator[Token]:
        return self._tokens


@dataclass
class _Memory:
    """What the cache was filled with: pictures, prompt, and the answer that followed it."""

    pictures: tuple[str, ...] = ()
    images: list[ImageInputs] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    layout: Layout | None = None
    generation: Generation | None = None

    def fed(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the first ``length`` cached positions, and which of them are image rows."""
        if self.layout is None or self.generation is None:
            return np.zeros(0, np.int64), np.zeros(0, bool)
        answer = np.array(self.generation.ids, dtype=np.int64)
        ids = np.concatenate([self.layout.input_ids[0], answer])[:length]
        return ids, np.concatenate([self.layout.image_rows, np.zeros(len(answer), bool)])[:length]


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
        self.session = Session(backend, processor, source.limits)
        self.upright = upright
        self._memory = _Memory()
        self._turns = Turns()

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
            images: paths, PIL images or uint8 arrays.
            stream: called with each piece of text as it comes.
            overrides: sampling and limits apart from the package's defaults.
            upright: whether photographs are turned as EXIF says; None for what `load` was told.
        """
        if stream is not None and not callable(stream):
            raise UsageError(f"stream is {shortened(stream)}", "a function that takes text", "leave it out")
        with self._turns.held(ANSWERING):
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
        with self._turns.turn("reading the question"):
            settings = settings_of(self.package.generation, overrides)
            if not isinstance(messages, str | list | tuple):
                raise UsageError(f"messages is {shortened(messages)}", "a text or a list of messages", "pass one of them")
            turned = self.upright if upright is None else upright
            if not isinstance(turned, bool):
                raise UsageError(f"upright is {shortened(turned)}", "True or False", "correct it, or leave it out")
            turns, pictures = conversation.read(messages, picture_list(images), turned, self.check_picture)
        run = AnswerStream(iter(()))
        run._tokens = self._turns.steps(self._answer(turns, pictures, settings, run), ANSWERING)
        return run

    def reset(self) -> None:
        """Forget the conversation: cache and picture features."""
        with self._turns.turn("forgetting the conversation"):
            self._forget()

    def close(self) -> None:
        """Give the memory back, once the answer at work is finished; closing again does nothing."""
        with self._turns.last() as was_open:
            if was_open:
                self._forget()
                self.backend.close()

    def _forget(self) -> None:
        self.session.reset()
        self._memory = _Memory()

    def record(self, recorder: Recorder | None) -> None:
        """Send every probe of the following answers to ``recorder`` (see runtime_py.generation.session.Recorder)."""
        self.session.recorder = recorder

    def check_picture(self, name: str, width: int, height: int) -> None:
        """Raise ImageError for a picture of a size that this model, or this machine, cannot take."""
        if isinstance(self.processor, PredictsExtent):
            check_extent(self.processor.extent(width, height), self.package.limits.context, name, width, height)

    def prompt_layout(self, turns: Sequence[Message], images: Sequence[ImageInputs]) -> Layout:
        """The prompt as the decoder will see it, after making sure that it fits the context."""
        layout = self.processor.layout(self.processor.encode(turns, images), images)
        self.session.check_room(layout.input_ids.shape[1])
        return layout

    def _answer(
        self, turns: list[Message], pictures: list[np.ndarray], settings: Settings, run: AnswerStream
    ) -> Iterator[Token]:
        began = time.perf_counter()
        memory = self._memory
        keys = tuple(conversation.fingerprint(picture) for picture in pictures)
        known = keys == memory.pictures
        self.processor.prompt.check(turns, len(pictures))
        images = memory.images if known else self.processor.images(pictures)
        layout = self.prompt_layout(turns, images)
        features = memory.features if known else self.session.features(images)
        seen = time.perf_counter()
        keep = self._common(memory, layout, known)
        memory = self._memory = _Memory(keys, images, features)
        merged = self.session.merge(layout, features)
        logits = self.session.prefill(merged, layout, "last", keep=keep)
        generation = Generation(self.session, logits, settings)
        memory.layout, memory.generation = layout, generation
        filled = time.perf_counter()
        pieces: list[str] = []
        text = self.tokenizer.stream()
        first = None
        for token in generation:
            first = first or time.perf_counter()
            pieces.append(text.push(token))
            yield Token(token, pieces[-1])
            if self._memory is not memory:
                raise UsageError(
                    "this answer was left for another one", "one answer at a time", "finish or drop it before the next call"
                )
            if run.stopped:
                generation.finish = Finish.STOPPED
                break
        ended = time.perf_counter()
        pieces.append(text.finish())
        assert generation.finish is not None
        prompt = layout.input_ids.shape[1]
        timing = Timing(
            prompt_tokens=prompt,
            kept_tokens=keep,
            answer_tokens=len(generation.ids),
            steps=self.session.length - prompt,
            image_seconds=0.0 if known else seen - began,
            prefill_seconds=filled - seen,
            first_token_seconds=(first or ended) - began,
            decode_seconds=ended - (first or ended),
        )
        run.answer = Answer("".join(pieces).strip(), tuple(generation.ids), generation.finish, timing)

    def _common(self, memory: _Memory, layout: Layout, same_pictures: bool) -> int:
        """How many leading positions of the cache this prompt can keep; at least its last token is fed again."""
        fed, rows = memory.fed(self.session.length)
        count = min(len(fed), layout.input_ids.shape[1] - 1)
        equal = (fed[:count] == layout.input_ids[0, :count]) & (rows[:count] == layout.image_rows[:count])
        if not same_pictures:
            equal &= ~layout.image_rows[:count]
        keep = count if equal.all() else int(equal.argmin())
        return keep if self.session.can_keep(layout, keep) else 0


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
        backend: a runtime name of runtime_py.backends.registry; the manifest's ``runtime_backend`` when None.
        verify: ``full`` compares every file's SHA-256, ``size`` sizes alone, ``off`` nothing.
        threads: threads for computing; 0 leaves it to the backend.
        providers: ONNX Runtime execution providers, best first.
        selftest: run the package's own sample and refuse a package that answers it otherwise.
        trust: the SHA-256 of the package's manifest, which is compared, or True; needed for a package that brings code
            (backends ``mlc`` and ``trt``) and is not in the trust file (`runtime_py.package.trust`).
        upright: photographs are turned as EXIF says, where `Model.chat` is not told otherwise.

    Raises:
        UsageError, PackageError, MachineError, DoesNotFitError.
    """
    with last_resort("opening the package"):
        check_choices(backend, threads, providers)
        opened = package.read(package_folder(path, lambda known: trusting.require_known(known, backend, trust)))
        trusting.require(opened, backend, trust)
        package.verify(opened, verify)
        words = open_tokenizer(opened)
        processor = open_processor(opened, words)
        model = Model(opened, open_backend(opened, backend, threads, providers), processor, words, upright)
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


def check_choices(backend: str | None, threads: int, providers: Sequence[str] | None) -> None:
    """Raise UsageError for what cannot choose a backend, whatever the package."""
    if backend is not None and not isinstance(backend, str):
        raise UsageError(f"backend {shortened(backend)}", "one of " + ", ".join(runtime_backends()), "choose one of them")
    if backend is not None:
        runtime_backend(backend)
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise UsageError(f"{shortened(threads)} threads", "0 or more", "correct the number")
    listed = isinstance(providers, list | tuple) and all(isinstance(name, str) for name in providers)
    if providers is not None and not listed:
        raise UsageError(f"providers is {shortened(providers)}", "a list of names", 'for example ["CUDAExecutionProvider"]')


def open_backend(
    opened: package.Package, backend: str | None = None, threads: int = 0, providers: Sequence[str] | None = None
) -> Backend:
    """The backend that runs a package, chosen by the caller or by the manifest."""
    record = runtime_backend(backend or opened.runtime_backend)
    name = record.runtime_name
    if threads < 0:
        raise UsageError(f"{threads} threads", "0 or more", "correct the number")
    if providers and not record.can(Ability.PROVIDERS):
        able = those_that_can(Ability.PROVIDERS)
        raise UsageError(f"providers {list(providers)} for backend '{name}'", f"backend {able}", "leave them out")
    if threads and not record.can(Ability.THREADS):
        able = those_that_can(Ability.THREADS)
        raise UsageError(f"{threads} threads for backend '{name}'", f"backend {able}", record.threads_advice)
    if not record.block(opened.manifest):
        held = ", ".join(other.runtime_name for other in held_backends(opened.manifest)) or "none that is known here"
        raise PackageError(
            f"{opened.folder} holds no {record.files}",
            f"one of the backends it was exported for: {held}",
            f"leave backend '{name}' out, or export for a target that has it",
        )
    return record.open(opened.folder, opened.manifest, OpeningChoices(threads, tuple(providers or ())))


def open_processor(opened: package.Package, words: tokenizer.Tokenizer | None) -> Processor:
    """The family's processor, by its name in the manifest."""
    return make_processor(opened.processor, opened.runtime, words)
