"""How large the numbers of a key/value cache become: the decoder run block by block, its keys and values looked at.

A channel of a key turns with the one half a head away by an angle that grows with the position, so what a channel may become
is the length of the pair, at whatever position the sample had it (`export.quantisation.cache_scales`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrate.samples.data import Prompt
from calibrate.statistics.capture import stream
from calibrate.statistics.passes import PLAIN, Passes
from export.quantisation.codes import WeightProvider
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import ModelSpec


def cache_sizes(
    spec: ModelSpec,
    weights: WeightProvider,
    prompts: Sequence[Prompt],
    processor: Processor,
    passes: Passes = PLAIN,
) -> dict[str, Tensor]:
    """The largest keys and values over all prompts, by the name of the scale: float32 (kv_heads, head_dim).

    Peak memory: one block's weights, and the activations of all prompts between two blocks.
    """
    from export.modules.cache_kernels import WatchingKernels

    kernels = WatchingKernels()
    stream(spec, weights, prompts, processor, lambda _: False, lambda *_: None, kernels=kernels, passes=passes)
    return kernels.sizes
