"""Which step of the preprocessing differs, found by asking both processors about pictures that need fewer steps.

A picture of one colour looks the same at every size and under every kernel: if both sides disagree on it, colours are
scaled, ordered or padded differently. A picture that has the final size already needs no resizing. What disagrees only on
pictures that must be resized is the resizing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity_tests.judging.metrics import Kind, max_abs
from parity_tests.judging.probes import PREPROCESS, Question
from parity_tests.judging.results import Divergence
from parity_tests.judging.standards import Standard, Table
from parity_tests.thresholds import limits
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor

PIXELS = "pixel_values"


def localize_pixels(
    expected: Processor,
    actual: Processor,
    question: Question,
    family: str,
    settings: Sequence[str],
    table: Table | None = None,
) -> Divergence | None:
    """The first step whose result differs, or None when the pixels agree.

    Args:
        expected, actual: the checkpoint's processor and the package's.
        settings: in words, the settings in which the package differs from the checkpoint.
    """
    allowed = next(limit.bound for limit in limits(Standard.FP32, Kind.PIXELS, family, table) if limit.metric == "max_abs")
    if not question.pictures:
        return None
    errors = [_difference(expected, actual, [picture]) for picture in question.pictures]
    if all(error <= allowed for error in errors):
        return None
    block, why = _step(expected, actual, question.pictures[0], allowed)
    told = [why, *settings]
    return Divergence(PREPROCESS, block, ((PIXELS, max(errors)),), "; ".join(filter(None, told)))


def _step(expected: Processor, actual: Processor, picture: np.ndarray, allowed: float) -> tuple[str, str]:
    made = _pixels(expected, [picture])
    if _difference(expected, actual, [picture]) == float("inf"):
        return "size", f"{_shapes(_pixels(actual, [picture]))} instead of {_shapes(made)}"
    flat = np.broadcast_to(np.array([200, 90, 30], np.uint8), picture.shape).copy()
    if _difference(expected, actual, [flat]) > allowed:
        return "normalise", "a picture of one colour differs: colours are scaled, ordered or padded differently"
    if len(made) == 1 and made[0].ndim == 4:
        height, width = made[0].shape[-2:]
        fitting = np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)
        if _difference(expected, actual, [fitting]) > allowed:
            return "layout", "a picture of the final size differs, one of one colour does not"
        return "resize", "pictures of one colour and of the final size agree, resized ones do not: the resampling kernel"
    return "resize", "pictures of one colour agree, others do not"


def _pixels(processor: Processor, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    try:
        return [image.vision[PIXELS] for image in processor.images(pictures) if PIXELS in image.vision]
    except UsageError:
        return []


def _difference(expected: Processor, actual: Processor, pictures: Sequence[np.ndarray]) -> float:
    """Largest difference of any value; infinite where number or shapes of the pieces differ."""
    a, b = _pixels(expected, pictures), _pixels(actual, pictures)
    if [piece.shape for piece in a] != [piece.shape for piece in b]:
        return float("inf")
    return max((max_abs(one, other) for one, other in zip(a, b, strict=True)), default=0.0)


def _shapes(pieces: Sequence[np.ndarray]) -> str:
    return ", ".join(" x ".join(map(str, piece.shape)) for piece in pieces) or "nothing"


def differing_settings(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """The package's settings that are not the checkpoint's, in words."""
    return [
        f"setting {name} is {actual.get(name, 'not there')!r} instead of {expected.get(name, 'not there')!r}"
        for name in sorted({*expected, *actual})
        if expected.get(name) != actual.get(name)
    ]
