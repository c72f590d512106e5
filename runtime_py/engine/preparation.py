"""A question made ready for the decoder: pictures through the vision encoder, the prompt laid out and embedded.

Features of pictures are kept, so that the next question about one of them costs no vision. What tells two positions of a
prompt apart is its token and, where an image row stands, the picture: `Prepared.origins` numbers those by content.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime_py.generation import conversation
from runtime_py.generation.session import Session
from runtime_py.preprocess.base import ImageInputs, Layout, Message


@dataclass(frozen=True)
class Prepared:
    """A prompt as the decoder takes it.

    Attributes:
        merged: float32 (1, tokens, hidden).
        origins: int64 (tokens,); equal numbers for image rows of the same piece of the same picture, -1 for text.
        image_seconds: preprocessing and vision encoder; 0 when every picture was known.
        began: of the preparation, by time.perf_counter.
    """

    layout: Layout
    merged: np.ndarray
    origins: np.ndarray
    image_seconds: float
    began: float

    @property
    def tokens(self) -> int:
        return int(self.layout.input_ids.shape[1])


@dataclass(frozen=True)
class KnownPicture:
    """Encoder inputs of one picture, without their pixels, and the features of each."""

    pieces: tuple[ImageInputs, ...]
    features: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.features)


class Preparation:
    """Prepares questions, one at a time whatever the threads.

    Args:
        session: whose stages without a cache are run.
        keep_bytes: of picture features kept at most, beside those of the newest question.
    """

    def __init__(self, session: Session, keep_bytes: int = 0) -> None:
        self.session = session
        self.keep_bytes = keep_bytes
        self._known: OrderedDict[str, KnownPicture] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, turns: Sequence[Message], pictures: Sequence[np.ndarray]) -> Prepared:
        """A conversation that ends with a question.

        Raises:
            UsageError: the model has no form for it, or it does not fit the context; nothing has run then.
        """
        with self._lock:
            return self._prepare(turns, pictures)

    def forget(self) -> None:
        """Drop all features."""
        with self._lock:
            self._known.clear()

    def _prepare(self, turns: Sequence[Message], pictures: Sequence[np.ndarray]) -> Prepared:
        began = time.perf_counter()
        processor = self.session.processor
        keys = [conversation.fingerprint(picture) for picture in pictures]
        processor.prompt.check(turns, len(pictures))
        known = {key: self._known[key] for key in keys if key in self._known}
        new = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in known}
        made = self._processed(new)
        images = [replace(piece, source=at) for at, key in enumerate(keys) for piece in made.get(key) or known[key].pieces]
        layout = self.layout(turns, images)
        for key in made:
            pieces = [piece for piece in images if piece.source == keys.index(key)]
            features = tuple(self.session.features(pieces))
            known[key] = KnownPicture(tuple(replace(piece, vision={}, connector={}) for piece in pieces), features)
        seen = time.perf_counter()
        self._keep(known)
        merged = self.session.merge(layout, [rows for key in keys for rows in known[key].features])
        origins = _origins(layout, keys, known)
        return Prepared(layout, merged, origins, seen - began if new else 0.0, began)

    def _processed(self, new: Mapping[str, np.ndarray]) -> dict[str, list[ImageInputs]]:
        """The pieces of each picture, pixels included."""
        made: dict[str, list[ImageInputs]] = {key: [] for key in new}
        keys = list(new)
        for piece in self.session.processor.images(list(new.values())) if new else ():
            made[keys[piece.source]].append(piece)
        return made

    def layout(self, turns: Sequence[Message], images: Sequence[ImageInputs]) -> Layout:
        """The prompt as the decoder will see it, after making sure that it fits the context."""
        processor = self.session.processor
        layout = processor.layout(processor.encode(turns, images), images)
        self.session.check_room(layout.input_ids.shape[1])
        return layout

    def _keep(self, newest: Mapping[str, KnownPicture]) -> None:
        for key, picture in newest.items():
            self._known[key] = picture
            self._known.move_to_end(key)
        held = sum(picture.nbytes for picture in self._known.values())
        while len(self._known) > len(newest) and held > self.keep_bytes:
            held -= self._known.popitem(last=False)[1].nbytes


def _origins(layout: Layout, keys: Sequence[str], known: Mapping[str, KnownPicture]) -> np.ndarray:
    """Image rows stand in the prompt in the order of the pictures and their pieces."""
    origins = np.full(len(layout.image_rows), -1, dtype=np.int64)
    numbers = [
        np.full(piece.rows, _number(f"{key} {index}"), dtype=np.int64)
        for key in keys
        for index, piece in enumerate(known[key].pieces)
    ]
    if numbers:
        origins[layout.image_rows] = np.concatenate(numbers)
    return origins


def _number(name: str) -> int:
    """63 bits that stand for a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
