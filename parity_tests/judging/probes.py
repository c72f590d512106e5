"""What is compared: the named arrays on the way from picture to last token, recorded on any backend by one pipeline.

    preprocess -> pixel_values -> vision -> connector -> inputs_embeds -> prefill_logits -> step_logits -> greedy_ids

Steps run under teacher forcing: the candidate is fed the reference's tokens, so that one wrong token does not make every
later comparison meaningless. ``greedy_ids`` is what it says when left alone; ``drawn_ids`` the same under sampling settings,
where a run asks for it (`parity_tests.judging.drawn`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from parity_tests.judging.drawn import draw, drawn_scores
from parity_tests.judging.metrics import Kind
from runtime_py.backends.base import Backend
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.generation.sampler import Sampling
from runtime_py.generation.session import Session, SessionLimits
from runtime_py.preprocess.base import Layout, Message, Processor

PREPROCESS = "preprocess"


@dataclass(frozen=True)
class Probe:
    """One comparable array. ``stage`` is the first stage to blame when everything before it agrees."""

    name: str
    stage: str
    kind: Kind


PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("pixel_values", PREPROCESS, Kind.PIXELS),
        Probe("vision", VISION, Kind.FEATURES),
        Probe("connector", CONNECTOR, Kind.FEATURES),
        Probe("inputs_embeds", EMBED, Kind.EMBEDS),
        Probe("picture_logits", DECODER, Kind.PICTURE_LOGITS),
        Probe("prefill_logits", DECODER, Kind.PROMPT_LOGITS),
        Probe("step_logits", DECODER, Kind.LOGITS),
        Probe("greedy_ids", DECODER, Kind.TOKENS),
        Probe("drawn_ids", DECODER, Kind.TOKENS),
    )
}
"""Every probe by name, in pipeline order."""

DRAWN = "drawn_ids"
"""Recorded only where an answer is drawn (``--sampling``)."""

ALWAYS = tuple(name for name in PROBES if name != DRAWN)
"""What every comparison of a whole answer records."""

REQUIRED = ("vision", "connector", "inputs_embeds", "prefill_logits", "greedy_ids", "step_logits", DRAWN)
"""Probes that must be compared whenever the reference has them."""


@dataclass(frozen=True)
class Question:
    """One prompt with its pictures.

    Attributes:
        pictures: uint8 RGB (height, width, 3).
        input_ids: int64 (1, tokens) in the published form, placeholders included.
        text: what a person would have typed, when there is such a thing.
        calls: in how many decoder calls the prompt is fed at least; more where a chunk is smaller than that.
        truth: every answer that is right, where that is known.
        positions: rows of the prompt, those of pictures included; 0 where nobody counted them.
        messages: the turns that the ids were made of; empty where nobody kept them.
    """

    name: str
    pictures: tuple[np.ndarray, ...]
    input_ids: np.ndarray
    text: str = ""
    calls: int = 1
    truth: tuple[str, ...] = ()
    positions: int = 0
    messages: tuple[Message, ...] = ()


@dataclass
class Recording:
    """What one backend said to one question.

    Attributes:
        pieces: per image piece, in order: ``pixel_values``, ``vision``, ``connector``.
        arrays: the other probes; ``step_logits`` (1, steps, vocabulary), ``greedy_ids`` and ``drawn_ids`` int64 (1, steps).
        picture_rows: bool (tokens,), True where a row of the prompt is an image's and not text; None where nobody said.
        absent: probe name to why this backend cannot give it.
        fed: int64 (1, steps), the tokens that were fed for ``step_logits``.
        greedy_logits: (1, steps, vocabulary), what ``greedy_ids`` were taken from; other than ``step_logits`` as soon as
            the backend's own answer leaves the tokens it was fed.
        sampling: settings of ``drawn_ids``; None where nothing was drawn.
        drawn_scores: (steps, vocabulary), the penalised logits that ``drawn_ids`` were drawn from.
        seconds: by the clock, until everything was recorded.
    """

    question: str
    pieces: dict[str, list[np.ndarray]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    picture_rows: np.ndarray | None = None
    absent: dict[str, str] = field(default_factory=dict)
    fed: np.ndarray | None = None
    greedy_logits: np.ndarray | None = None
    sampling: Sampling | None = None
    drawn_scores: np.ndarray | None = None
    seconds: float = 0.0

    def flattened(self) -> dict[str, np.ndarray]:
        """All arrays by probe name in pipeline order; pieces as ``vision_0``, ``vision_1``, or plain when there is one."""
        arrays: dict[str, np.ndarray] = {}
        for name in PROBES:
            pieces = self.pieces.get(name, [])
            if len(pieces) == 1:
                arrays[name] = pieces[0]
            else:
                arrays |= {f"{name}_{index}": piece for index, piece in enumerate(pieces)}
            if name in self.arrays:
                arrays[name] = self.arrays[name]
        return arrays


def base_name(name: str) -> str | None:
    """The probe behind a name that may end in a piece number (``vision_3`` -> ``vision``), or None."""
    if name in PROBES:
        return name
    stem, _, number = name.rpartition("_")
    return stem if stem in PROBES and number.isdecimal() else None


def record(
    backend: Backend,
    processor: Processor,
    limits: SessionLimits,
    question: Question,
    steps: int,
    forced: np.ndarray | None = None,
    sampling: Sampling | None = None,
) -> Recording:
    """Run a question from its pictures to the last of ``steps`` tokens and keep every probe.

    Args:
        steps: answer tokens; no stop id is honoured.
        forced: int64 (1, steps) tokens to feed instead of the backend's own (those of the reference).
        sampling: settings of one more answer, ``drawn_ids``; None leaves it out.
    """
    recording = Recording(question.name)
    session = Session(backend, processor, limits, recorder=_keeper(recording))
    images = processor.images(question.pictures) if question.pictures else []
    layout = processor.layout(question.input_ids, images)
    recording.picture_rows = layout.image_rows
    embeds = session.merge(layout, session.features(images))
    chunk = min(limits.prefill_chunk, math.ceil(embeds.shape[1] / question.calls))
    logits = session.prefill(embeds, layout, "all", chunk)
    rows, own = _steps(session, logits, steps, None if forced is None else forced[0])
    recording.arrays["step_logits"] = recording.greedy_logits = rows
    recording.fed = own[None] if forced is None else forced
    # its own answer parts from what it was fed, so that it has to be asked once more without being fed
    if forced is not None and not np.array_equal(own, forced[0]):
        recording.greedy_logits, own = _left_alone(Session(backend, processor, limits), layout, embeds, steps, chunk)
    recording.arrays["greedy_ids"] = own[None].astype(np.int64)
    if sampling is not None:
        recording.sampling = sampling
        _draw(recording, sampling, Session(backend, processor, limits), layout, embeds, steps, chunk)
    return recording


def _keeper(recording: Recording):
    def keep(name: str, array: np.ndarray) -> None:
        if name in ("pixel_values", "vision", "connector"):
            recording.pieces.setdefault(name, []).append(np.array(array))
        elif name != "step_logits":
            recording.arrays[name] = np.array(array)

    return keep


def _steps(session: Session, prefill: np.ndarray, steps: int, forced: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(1, steps, vocabulary) logits and the (steps,) tokens they put first; row 0 is the last prompt position."""
    rows = [prefill[:, -1:]]
    for index in range(steps - 1):
        token = int(np.argmax(rows[-1][0, 0])) if forced is None else int(forced[index])
        rows.append(session.step(token))
    logits = np.concatenate(rows, axis=1)
    return logits, np.argmax(logits[0], axis=-1)


def _draw(
    recording: Recording, sampling: Sampling, session: Session, layout: Layout, embeds: np.ndarray, steps: int, chunk: int
) -> None:
    """Answer once more under ``sampling``."""
    row = session.prefill(embeds, layout, "last", chunk)[0, -1]
    ids: list[int] = []
    rows = []
    for step in range(steps):
        rows.append(drawn_scores(row, [*layout.penalised_ids, *ids], sampling))
        ids.append(draw(rows[-1], sampling, step))
        if step < steps - 1:
            row = session.step(ids[-1])[0, -1]
    recording.drawn_scores = np.stack(rows)
    recording.arrays["drawn_ids"] = np.array([ids], np.int64)


def _left_alone(
    session: Session, layout: Layout, embeds: np.ndarray, steps: int, chunk: int
) -> tuple[np.ndarray, np.ndarray]:
    return _steps(session, session.prefill(embeds, layout, "last", chunk), steps, None)
