"""Weight rules and joins that several families need."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from export.source.weight_map import Rule, compute_rows, take
from export.specs import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor


def pair(ours: str, theirs: str, shape: tuple[int, ...]) -> Iterator[Rule]:
    """``weight`` of this shape and ``bias`` of its first axis, stored under other names."""
    yield take(f"{ours}.weight", f"{theirs}.weight", shape)
    yield take(f"{ours}.bias", f"{theirs}.bias", shape[:1])


def tied_head(spec: DecoderSpec, name: str = "lm_head.weight") -> dict[str, str]:
    """The stored head of a model whose head is its embedding, and the parameter it must equal (`WeightMap`'s ``copies``).

    transformers 4 replaces such a head on loading; transformers 5 compares it, and keeps it where it differs
    (``tie_weights`` in src/transformers/modeling_utils.py). So one that differs is another model for each of them: refused.
    """
    return {name: "embed_tokens.table.weight"} if spec.tied_head else {}


def flat_window(kernel: Tensor) -> Tensor:
    """A convolution kernel (out, in, k, k) as the linear map of a row-major window of rows (out, k * k * in)."""
    return kernel.permute(0, 2, 3, 1).reshape(kernel.shape[0], -1)


def with_low_rank(target: str, weight: str, down: str, up: str, shape: tuple[int, int], rank: int, scale: float) -> Rule:
    """W + scale B A, streamed by rows; ``weight``, ``down`` (A) and ``up`` (B) are published names."""
    rows, columns = shape
    parts = [(weight, shape, True), (up, (rows, rank), True), (down, (rank, columns), False)]
    return compute_rows(target, parts, shape, partial(_add_low_rank, scale=scale))


def _add_low_rank(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    return weight + scale * (up @ down)


def side_by_side(target: str, parts: list[str], rows: int, columns: int) -> Rule:
    """Published (rows, columns) tensors next to one another, as (rows, columns * parts)."""
    return compute_rows(target, [(name, (rows, columns), True) for name in parts], (rows, columns * len(parts)), _join)


def _join(*columns: Tensor) -> Tensor:
    import torch

    return torch.cat(columns, dim=1)
