"""Scales of a cache in bytes: those that are not the calibration's, and those that hold too little.

A scale that is a little wrong moves answers less than bytes that round the other way do, so the files' own are held against
the calibration's bit by bit. What the calibration has wrong itself, the reference rounds by too, and would say the same
nonsense. A scale is chosen so that nothing of its samples is cut. Of text that is like none of them some numbers may be, by
a little; where those of a channel are cut to less than their half at every few positions, its scale is none of this model,
or of samples that say nothing of its use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.modules.cache_kernels import RoundedCacheAttention
from export.quantisation.cache_scales import KEY, VALUE
from parity_tests.check.candidate import Candidate
from parity_tests.judging.metrics import Kind
from parity_tests.judging.results import Comparison, Divergence, Measurement
from parity_tests.reference.checkpoint_side import Checkpoint, cache_scales
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from parity_tests.reference.reference import TorchBackend

NAME = "cache scales"

SHARE = 0.2
"""Of all positions. Of normally distributed numbers whose scale is 8 times too small a third are cut to less than half."""


def other_scales(candidate: Candidate, checkpoint: Checkpoint) -> tuple[Comparison, Divergence] | None:
    """A failed comparison and the first place in it; None where every scale of the files is the calibration's.

    Channels that only widen a head to what an operator takes are not looked at: nothing but zeros stands in them.
    """
    if not candidate.examiner.keeps_bytes(candidate):
        return None
    stored = candidate.examiner.cache_scales(candidate)
    wanted = cache_scales(checkpoint, candidate.examiner.record_name).tensors
    other = {name: _other(stored.get(name), scale.numpy()) for name, scale in wanted.items()}
    wrong = [name for name, count in other.items() if count]
    if not wrong:
        return None
    path, _, half = wrong[0].removeprefix(f"{DECODER}.").rpartition(".")
    block = ".".join(path.split(".")[:2])
    note = (
        f"inside it the first is {path.removeprefix(f'{block}.')}.{half}: {other[wrong[0]]} channels have other scales than "
        f"the calibration, in all layers {sum(other.values())}; export again with --calibration"
    )
    return _compared(candidate, "the calibration", sum(other.values())), Divergence(DECODER, block, note=note)


def _other(stored: np.ndarray | None, scale: np.ndarray) -> int:
    """How many of a layer's scales (kv_heads, head_dim) are others in the files, (kv_heads, 1, head_dim or more)."""
    if stored is None or stored.ndim != 3 or stored.shape[0] != scale.shape[0] or stored.shape[2] < scale.shape[1]:
        return int(scale.size)
    return int(np.count_nonzero(stored[:, 0, : scale.shape[1]] != scale))


def _compared(candidate: Candidate, against: str, count: int) -> Comparison:
    measurement = Measurement("cache scales", DECODER, Kind.EXACT, (count,), {"mismatches": float(count)})
    return Comparison(NAME, candidate.implementation_standard(), against, candidate.name, (measurement,))


def cut_channels(candidate: Candidate, reference: TorchBackend) -> tuple[Comparison, Divergence] | None:
    """A failed comparison and the first place in it, of what a reference kept so far; None where no channel is cut so."""
    if not candidate.examiner.keeps_bytes(candidate):
        return None
    places = []
    for path, module in reference.stage(DECODER).named_modules():
        if isinstance(module, RoundedCacheAttention) and module.seen:
            often = module.halved > SHARE * module.seen
            places += [(path, half, int(often[at].sum())) for at, half in enumerate((KEY, VALUE)) if often[at].any()]
    if not places:
        return None
    count = sum(cut for _, _, cut in places)
    path, half, cut = places[0]
    block = ".".join(path.split(".")[:2])
    note = (
        f"inside it the first is {path.removeprefix(f'{block}.')}.{half}: {cut} channels are cut to less than half at more "
        f"than {SHARE:.0%} of the positions, in all layers {count}; calibrate again, with samples of what the model will see"
    )
    return _compared(candidate, "numbers that the reference keeps", count), Divergence(DECODER, block, note=note)
