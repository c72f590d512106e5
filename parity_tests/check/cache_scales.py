"""Scales of a cache in bytes: those that are not the calibration's, and those that hold too little.

A scale that is a little wrong moves answers less than bytes that round the other way do, so the files' own are held against
the calibration's bit by bit. What the calibration has wrong itself, the reference rounds by too, and would say the same
nonsense. A scale is chosen so that nothing of its samples is cut. Of text that is like none of them some numbers may be, by
a little; where those of a channel are cut to less than their half at every few positions, its scale is none of this model,
or of samples that say nothing of its use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from export.modules.cache_kernels import RoundedCacheAttention
from export.quantisation.cache_scales import KEY, VALUE
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Divergence, Measurement
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

NAME = "cache scales"

SHARE = 0.2
"""Of all positions. Of normally distributed numbers whose scale is 8 times too small a third are cut to less than half."""

Failed = tuple[Comparison, Divergence]
"""A failed comparison, and the first place in it."""


def other_scales(candidate: Candidate, reference: TorchBackend) -> Failed | None:
    """None where every scale of the files is that of the calibration, which the reference rounds by.

    Channels that only widen a head to what an operator takes are not looked at: nothing but zeros stands in them.
    """
    if not candidate.examiner.keeps_bytes(candidate):
        return None
    stored = candidate.examiner.cache_scales(candidate)
    other = {
        f"{path}.{half}": _other(stored.get(f"{DECODER}.{path}.{half}"), scale.cpu().numpy())
        for path, module in _attentions(reference)
        for half, scale in zip((KEY, VALUE), module.scales, strict=True)
    }
    return _failed(
        candidate, "the calibration", other, "have other scales than the calibration", "export again with --calibration"
    )


def cut_channels(candidate: Candidate, reference: TorchBackend) -> Failed | None:
    """None where no channel of what the reference kept so far is cut to less than half too often."""
    if not candidate.examiner.keeps_bytes(candidate):
        return None
    cut = {
        f"{path}.{half}": int((module.halved[at] > SHARE * module.seen).sum())
        for path, module in _attentions(reference)
        for at, half in enumerate((KEY, VALUE))
    }
    often = f"are cut to less than half at more than {SHARE:.0%} of the positions"
    advice = "calibrate again, with samples of what the model will see"
    return _failed(candidate, "numbers that the reference keeps", cut, often, advice)


def _attentions(reference: TorchBackend) -> Iterator[tuple[str, RoundedCacheAttention]]:
    for path, module in reference.stage(DECODER).named_modules():
        if isinstance(module, RoundedCacheAttention):
            yield path, module


def _other(stored: np.ndarray | None, scale: np.ndarray) -> int:
    """How many of a layer's scales (kv_heads, head_dim) are others in the files, (kv_heads, 1, head_dim or more)."""
    if stored is None or stored.ndim != 3 or stored.shape[0] != scale.shape[0] or stored.shape[2] < scale.shape[1]:
        return int(scale.size)
    return int(np.count_nonzero(stored[:, 0, : scale.shape[1]] != scale))


def _failed(candidate: Candidate, against: str, channels: Mapping[str, int], what: str, advice: str) -> Failed | None:
    """Of the channels of each layer's scale, by its path in the decoder, that are wrong; None where none is."""
    wrong = {path: count for path, count in channels.items() if count}
    if not wrong:
        return None
    count, (path, first) = sum(wrong.values()), next(iter(wrong.items()))
    block = ".".join(path.split(".")[:2])
    measurement = Measurement(NAME, DECODER, Kind.EXACT, (count,), {"mismatches": float(count)})
    compared = Comparison(NAME, candidate.implementation_standard(), against, candidate.name, (measurement,))
    note = (
        f"inside it the first is {path.removeprefix(f'{block}.')}: {first} channels {what}, in all layers {count}; {advice}"
    )
    return compared, Divergence(DECODER, block, note=note)
