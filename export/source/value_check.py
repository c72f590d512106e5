"""Every value of a checkpoint looked at before it is built into files: NaN, infinities, and what float16 cannot hold.

One pass over the tensors that are used, some MiB at a time, in the order of their files. Only the bits of the largest
magnitude are worked out, which costs less than reading does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import closing
from typing import TYPE_CHECKING

from export.quantisation.finite import largest_magnitude
from export.source.problems import listed
from export.source.row_threads import in_order
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from export.source.tensor_source import TensorInfo
    from export.source.weight_map import WeightMap

CHUNK = 1 << 20
"""Elements that are looked at a time."""

FLOAT16_LIMIT = 65520.0
"""The least magnitude that rounds to infinity in float16, whose largest value is 65504."""


def check_values(
    weights: WeightMap, stored_as_float16: Collection[str] = (), progress: Callable[[int, int], None] | None = None
) -> None:
    """Raise CheckpointError naming every tensor that holds what the package could not.

    Args:
        stored_as_float16: parameters that a file stores in float16 as the checkpoint has them.
        progress: told the bytes looked at and those there are.
    """
    infos = weights.source.infos
    used = {name for rule in weights.rules.values() for name in rule.sources}
    halved = {
        name
        for target in stored_as_float16
        for rule in (weights.rules[target],)
        if rule.join is None and rule.row_join is None and not rule.parts
        for name in rule.sources
    }
    names = [name for name in infos if name in used]
    whole, done, problems = sum(infos[name].nbytes for name in names), 0, list[str]()
    with closing(in_order(lambda name: _problems(weights, infos[name], name in halved), names)) as looked:
        for name, wrong in zip(names, looked, strict=True):
            problems += wrong
            done += infos[name].nbytes
            if progress is not None:
                progress(done, whole)
    if problems:
        raise CheckpointError(
            f"{len(problems)} tensor(s) of the checkpoint cannot be stored:" + listed(problems),
            "finite values, up to 65504 where the precision stores float16",
            "choose --precision fp32 for values that are only large; NaN comes from training or a bad download",
        )


def _problems(weights: WeightMap, info: TensorInfo, halved: bool) -> list[str]:
    """What is wrong with one tensor, in words: one line or none."""
    import torch

    looked_at = (torch.float16, torch.bfloat16, torch.float32)
    rows = info.shape[0] if info.shape else 1
    step = max(1, CHUNK // max(1, math.prod(info.shape[1:])))
    largest, place = 0.0, 0
    for start in range(0, rows, step):
        values = weights.source.read(info.name, start, min(start + step, rows))
        magnitude = largest_magnitude(values) if values.dtype in looked_at else 0.0
        if not magnitude < math.inf:
            at = f"rows {start} to {min(start + step, rows) - 1}" if rows > 1 else "its values"
            return [f"{info.name} ({info.file.name}): NaN or infinity in {at}"]
        if magnitude > largest:
            largest, place = magnitude, start
    if halved and largest >= FLOAT16_LIMIT:
        last = min(place + step, rows) - 1
        return [f"{info.name} ({info.file.name}): {largest:g} in rows {place} to {last}, beyond float16"]
    return []
