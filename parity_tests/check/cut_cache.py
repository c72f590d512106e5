"""Scales of a cache in bytes that hold too little: the reference rounds by them too, and would say the same nonsense.

A scale is chosen so that nothing of its samples is cut. Of text that is like none of them some numbers may be, by a little;
where those of a channel are cut to less than their half at every few positions, its scale is none of this model, or of
samples that say nothing of its use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    measurement = Measurement("cache scales", DECODER, Kind.EXACT, (count,), {"mismatches": float(count)})
    compared = Comparison(
        NAME, candidate.implementation_standard(), "numbers that the reference keeps", candidate.name, (measurement,)
    )
    path, half, cut = places[0]
    block = ".".join(path.split(".")[:2])
    note = (
        f"inside it the first is {path.removeprefix(f'{block}.')}.{half}: {cut} channels are cut to less than half at more "
        f"than {SHARE:.0%} of the positions, in all layers {count}; calibrate again, with samples of what the model will see"
    )
    return compared, Divergence(DECODER, block, note=note)
