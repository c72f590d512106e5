"""Golden arrays beyond the common probes that can be looked at naturally: stored tables and outputs of single blocks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from parity_tests.candidate import Candidate
from parity_tests.checkpoint_side import Checkpoint
from parity_tests.localize import candidate_blocks
from parity_tests.metrics import Kind
from parity_tests.probes import Question
from runtime_py.backends.base import Arrays, Backend, DecoderState
from runtime_py.contracts import CONNECTOR, DECODER, VISION
from runtime_py.session import Limits, Session

Extra = tuple[str, Kind, np.ndarray]
"""Stage, kind and values."""

TABLES = {"vision_pos_embed": "vision_encoder.positions", "resampler_key_pos": "connector.key_positions"}
"""Golden name to canonical parameter. What is compared is the table that went into the package, as its rule makes it."""

_HIDDEN = re.compile(r"hidden_after_layer_(\d+)")


class FirstPrefill:
    """A backend that passes everything on and keeps the decoder inputs of the first call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.inputs: Arrays = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, state: DecoderState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        self.inputs = self.inputs or dict(inputs)
        return self._backend.forward(state, inputs, logit_positions)


def extra_array(name: str, side: Candidate, checkpoint: Checkpoint, asked: Question | None) -> Extra | None:
    """The values behind a golden array's name, or None when it is nothing that is looked at here.

    Raises:
        KeyError: the checkpoint has no such parameter (its tables are inputs, not constants).
        NotImplementedError: the backend gives no block outputs.
    """
    if name in TABLES:
        return _table(TABLES[name], checkpoint)
    hidden = _HIDDEN.fullmatch(name)
    if hidden and asked is not None:
        return DECODER, Kind.FEATURES, _block(side, asked, f"layers.{int(hidden[1])}")
    if name == "image_features" and asked is not None and asked.pictures:
        session = Session(side.backend, side.processor, side.limits)
        rows = session.features(side.processor.images(asked.pictures))
        return CONNECTOR, Kind.FEATURES, np.concatenate(rows)
    return None


def _table(parameter: str, checkpoint: Checkpoint) -> Extra:
    weights = checkpoint.weights
    if parameter not in weights.rules:
        raise KeyError(f"the checkpoint's {parameter} is an input of the stage, not a constant")
    values = weights.tensor(parameter).float().numpy()
    first = "vision_encoder.class_position"
    if parameter == TABLES["vision_pos_embed"]:
        if first in weights.rules:
            values = np.concatenate([weights.tensor(first).float().numpy(), values])
        return VISION, Kind.TABLE, values
    return CONNECTOR, Kind.TABLE, values


def _block(side: Candidate, asked: Question, block: str) -> np.ndarray:
    """One decoder block's output for the whole prompt."""
    listener = FirstPrefill(side.backend)
    session = Session(listener, side.processor, Limits(side.limits.context, side.limits.context))
    images = side.processor.images(asked.pictures) if asked.pictures else []
    layout = side.processor.layout(asked.input_ids, images)
    session.prefill(session.merge(layout, session.features(images)), layout)
    found = candidate_blocks(side, DECODER, listener.inputs)
    if block not in found:
        raise NotImplementedError(f"backend {side.name} gives no output of block {block}")
    return found[block]
