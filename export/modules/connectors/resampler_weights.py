"""How the published resampler tensors become the parameters of `Resampler` (MiniCPM-V, OmniLMM)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from export.modules.connectors.specs import ResamplerSpec
from export.source.weight_map import Rule, compute, take
from runtime_py.preprocess.resample import plain_bicubic, resample_table

if TYPE_CHECKING:
    from torch import Tensor


def resampler_rules(spec: ResamplerSpec, prefix: str) -> Iterator[Rule]:
    """Rules for the parameters under ``connector.``; ``prefix`` stands before every published name."""
    width, queries = spec.width, spec.queries
    in_proj = [(f"{prefix}attn.in_proj_weight", (3 * width, width)), (f"{prefix}attn.in_proj_bias", (3 * width,))]
    norm = [(f"{prefix}ln_q.{half}", (width,)) for half in ("weight", "bias")]
    tables = [(f"{prefix}{name}", (queries, width)) for name in ("query", "pos_embed")]
    yield compute(
        "connector.query", [*tables, *norm, *in_proj], (queries, width), partial(_projected_query, eps=spec.norm_eps)
    )
    if spec.fixed_positions is not None:
        resize = partial(_resized_keys, tokens=spec.fixed_positions)
        yield compute("connector.key_positions", tables[1:], (spec.fixed_positions, width), resize)
    if spec.project_vision:
        yield take("connector.kv_proj.weight", f"{prefix}kv_proj.weight", (width, spec.vision_width))
    for index, name in ((1, "key"), (2, "value")):
        part = partial(_third, index=index, width=width)
        yield compute(f"connector.{name}.weight", in_proj[:1], (width, width), part)
        yield compute(f"connector.{name}.bias", in_proj[1:], (width,), part)
    for half, shape in (("weight", (width, width)), ("bias", (width,))):
        yield take(f"connector.out.{half}", f"{prefix}attn.out_proj.{half}", shape)
    for name in ("ln_kv", "ln_post"):
        for half in ("weight", "bias"):
            yield take(f"connector.{name}.{half}", f"{prefix}{name}.{half}", (width,))
    yield compute("connector.proj.weight", [(f"{prefix}proj", (width, width))], (width, width), _transposed)


def _projected_query(
    query: Tensor, positions: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Wq (ln_q(query) + positions) + bq, in float64."""
    from torch.nn import functional as F

    width = query.shape[1]
    # float64: done once at export, where the published code does it in every call
    x = F.layer_norm(query.double(), (width,), scale.double(), shift.double(), eps) + positions.double()
    return (x @ weight[:width].double().T + bias[:width].double()).float()


def _resized_keys(table: Tensor, tokens: int) -> Tensor:
    """The stored square table resized to the square grid of the vision tokens; identity when they agree."""
    import torch

    if tokens == table.shape[0]:
        return table
    matrix = plain_bicubic(math.isqrt(table.shape[0]), math.isqrt(tokens))
    return torch.from_numpy(resample_table(table.numpy(), matrix, matrix).astype(np.float32))


def _third(stacked: Tensor, index: int, width: int) -> Tensor:
    return stacked[index * width : (index + 1) * width]


def _transposed(matrix: Tensor) -> Tensor:
    """``proj`` is stored for x @ proj; a linear layer holds the transpose."""
    return matrix.T
