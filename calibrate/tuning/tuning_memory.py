"""What a tuning of scales takes, for the plan, and whether this machine has it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from calibrate.samples.data import Prompt
from calibrate.tuning.scale_tuning import BATCH, tunable
from export.quantisation.spec import Assignment
from runtime_py.contracts import DECODER
from runtime_py.errors import DoesNotFitError, UsageError
from runtime_py.memory import human_bytes

if TYPE_CHECKING:
    from export.specs import ModelSpec

TOKEN_WIDTHS, MLP_WIDTHS = 8, 5
"""Rows of hidden and of MLP width that a layer keeps for its gradient, for each token: norms, rotated queries, products."""


def memory(spec: ModelSpec, assignments: Mapping[str, Assignment]) -> tuple[int, int]:
    """Bytes that a tuning takes: the decoder in float32 with codes, gradients and what Adam keeps of each scale, and
    activations for each token.
    """
    from export.modules.build import parameter_shapes

    decoder, sizes = spec.decoder, parameter_shapes(spec)
    held = sum(4 * math.prod(shape) for name, shape in sizes.items() if name.startswith(f"{DECODER}."))
    tuned = [math.prod(sizes[f"{name}.weight"]) for name in tunable(spec, assignments, list(assignments))]
    widths = TOKEN_WIDTHS * (decoder.hidden + decoder.heads * decoder.head_dim) + MLP_WIDTHS * decoder.mlp_width
    return held + 6 * sum(tuned) + 8 * max(tuned, default=0), 4 * decoder.layers * widths


def check_memory(spec: ModelSpec, assignments: Mapping[str, Assignment], prompts: Sequence[Prompt]) -> None:
    """Refuse a tuning that this machine has no memory for.

    Raises:
        UsageError: no layer of the decoder would have codes.
        DoesNotFitError: the decoder in float32, the full-precision logits and one sample's activations are too much.
    """
    from export.plan.machine import available_memory

    if not tunable(spec, assignments, list(assignments)):
        raise UsageError("--tune-scales, but no layer of the decoder is int4", "int4 layers to tune", "leave it out")
    fixed, token = memory(spec, assignments)
    logits = 4 * spec.decoder.vocabulary * sum(prompt.answer + 1 for prompt in prompts)
    needed = fixed + logits + token * max(prompt.layout.input_ids.shape[1] for prompt in prompts)
    available = available_memory()
    if needed > available:
        raise DoesNotFitError(
            "this machine has too little memory for --tune-scales",
            f"{human_bytes(needed)} for the whole decoder in float32 with gradients; {human_bytes(available)} can be taken",
            "leave --tune-scales out, or use a machine with more memory",
        )


def cost(steps: int, spec: ModelSpec, assignments: Mapping[str, Assignment]) -> str:
    """One line for the plan: what a tuning takes."""
    fixed, token = memory(spec, assignments)
    return (
        f"scale tuning: {steps} steps of {BATCH} samples; {fixed:,} bytes for the decoder in float32 with codes and "
        f"gradients, and about {token:,} for each token of the longest sample"
    )
