"""A tensor that a checkpoint stores a second time, held against the parameter it repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from export.source.weight_map import WeightMap

CHUNK = 1 << 22
"""Elements that are compared at a time."""


def check_copy(weights: WeightMap, name: str, target: str) -> None:
    """Compare a stored head with the embedding it is tied to, some rows at a time, up to the first row that differs.

    Args:
        name: the copy's published name.
        target: the parameter that it repeats.

    Raises:
        CheckpointError: they differ; whoever loads the checkpoint decides then what the model is, and we do not.
    """
    count, columns = weights.shape(target)
    step = max(1, CHUNK // columns)
    for start in range(0, count, step):
        stop = min(start + step, count)
        stored, ours = weights.source.read(name, start, stop).float(), weights.rows(target, start, stop).float()
        if not stored.equal(ours):
            row = start + int((stored != ours).any(1).nonzero()[0])
            raise CheckpointError(
                f"{name} is stored and differs from {', '.join(weights.rules[target].sources)} in row {row}, "
                "though config.json ties them (tie_word_embeddings)",
                "equal tables, or a config that does not tie them: transformers 4 would use one, transformers 5 both",
                f"set tie_word_embeddings to false if the model was trained with a head of its own, or remove {name}",
            )
