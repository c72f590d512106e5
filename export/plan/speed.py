"""The bytes that one answer token reads, from a backend's prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runtime_py.contracts import DECODER, EMBED
from targets.fitting.speed import WHOLE_CACHE

if TYPE_CHECKING:
    from export.backends.base import Prediction
    from export.quantisation.spec import Assignment
    from targets.base import Limits


def token_bytes(prediction: Prediction, assignments: Mapping[str, Assignment], limits: Limits) -> int:
    """The decoder's weights with its head, and the keys and values of a context that is half full.

    Weights are counted as they lie in the files. Every expert and adapter of a decoder is among them, though text alone
    does not go through those of pictures (CogVLM2, WeMM): there a token reads less than this.
    """
    weights = prediction.file_bytes.get(DECODER, 0)
    if any(assignment.shares for assignment in assignments.values()):
        # one matrix is the head and the table; whichever file it lies in, a token reads it as the head
        weights += prediction.file_bytes.get(EMBED, 0)
    return weights + prediction.device_bytes.get("kv_cache", 0) // WHOLE_CACHE // limits.batch
