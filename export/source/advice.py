"""What to do about a checkpoint whose tensors are not those that its config asks for, by what they seem to be instead; and
what to know of one whose values were rounded before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from export.source.tensor_source import TensorInfo
from export.source.training_names import common_prefix

QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|SCB|(nested_)?(absmax|quant_map)|quant_state\.\w+)$"
)
"""Ends of names beside or in place of ``weight``: AutoGPTQ/AutoGPTQ and casper-hansen/AutoAWQ (``qweight`` and its own),
bitsandbytes-foundation/bitsandbytes (``absmax``, ``SCB``; where they are whole they are read),
vllm-project/compressed-tensors (``weight_packed``),
huggingface/transformers src/transformers/integrations/finegrained_fp8.py (``weight_scale_inv``)."""

NARROW = ("int", "uint", "float8_", "float6_", "float4_")
"""Beginnings of dtypes that matrices are quantised to."""

TWICE = (
    "their values are read, and every narrower form rounds them a second time: where the full-precision checkpoint can be "
    "had, start from it (docs/checkpoints.md#quantised-checkpoints)"
)


def advice(missing: Sequence[str], left_over: Sequence[str], dtypes: Collection[str], empty: bool = False) -> str:
    """The next step of the error.

    Args:
        dtypes: those of tensors that should hold floats of at most 32 bits and do not.
        empty: a parameter is stored without a single value.
    """
    if empty:
        return (
            "a parameter without values is what DeepSpeed (ZeRO stage 3) leaves in a model saved from one process: save it "
            "with stage3_gather_16bit_weights_on_model_save, or join the parts with zero_to_fp32.py"
        )
    if any(QUANTISED.search(name) for name in left_over) or any(dtype.startswith(NARROW) for dtype in dtypes):
        return (
            "these weights are quantised, and the original values cannot be had back: name the full-precision checkpoint "
            "that they were made of; --precision int4 quantises it here"
        )
    prefix = common_prefix(list(left_over), list(missing))
    if prefix:
        return f"the names begin with {prefix!r}: save the module inside it, or take it off the names"
    if dtypes:
        return "save the weights in float32: model.float().save_pretrained(FOLDER)"
    return "check that config.json belongs to these weights and that every file was downloaded whole"


def rounded_before(infos: Iterable[TensorInfo]) -> list[str]:
    """What a person should know of matrices that were quantised before: one line, or none where none was."""
    forms = Counter(info.rounded_to for info in infos if info.rounded_to)
    if not forms:
        return []
    told = " and ".join(f"{count} matrices as {form}" for form, count in sorted(forms.items()))
    return [f"bitsandbytes stored {told}; {TWICE}"]


def published_rounded(library: str) -> list[str]:
    """As `rounded_before`, of a published checkpoint that is known to be quantised, where no tensor is at hand.

    Args:
        library: which quantised it; "" for one that none did.
    """
    return [f"this checkpoint is published quantised by {library}; {TWICE}"] if library else []
