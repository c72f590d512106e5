"""What the Relax blocks can build, judged from a spec without importing TVM."""

from __future__ import annotations

from dataclasses import replace

from export.backends.mlc.kind_blocks import block_of
from export.specs import DecoderSpec, ModelSpec
from export.stages import contracts
from runtime_py.backends.mlc_rows import sequence_axis
from runtime_py.contracts import DECODER, TensorContract

UNSOUND_HEAD = 16
"""TVM's prefill attention gives wrong numbers for this head size on OpenCL (measured on PoCL, 0.27.0.post1)."""

SCORE_BYTES = 256 << 20
"""float32 attention scores that exist at a time in a vision tower; more queries are taken in blocks."""


def unsupported(spec: ModelSpec, device: bool) -> list[str]:
    """Why a model has no MLC library, one reason each; empty when it has one.

    Args:
        device: the library is for a phone's GPU, not only for a CPU.
    """
    reasons = []
    if spec.decoder.rope.dim != spec.decoder.head_dim:
        reasons.append("rotary positions on part of a head")
    adapter = spec.decoder.layer_kind
    for what, part in (("vision tower", spec.vision), ("connector", spec.connector), ("decoder's adapter", adapter)):
        if not block_of(part):
            reasons.append(f"its {what}, {type(part).__name__}, has no Relax block")
    if device and spec.decoder.head_dim == UNSOUND_HEAD:
        reasons.append(f"attention heads of {UNSOUND_HEAD} channels, which TVM 0.27 computes wrongly on OpenCL")
    return reasons


def explicit_positions(spec: DecoderSpec) -> bool:
    """Whether a decoder's rotation needs position inputs, so that the cache must not rotate."""
    return bool(spec.rope.sections) or spec.rope.stored or spec.layer_kind.own_positions


def decoder_sides(spec: ModelSpec) -> list[TensorContract]:
    """The decoder inputs that the stock functions do not have; none for a model at the cache's own positions."""
    stock = ("inputs_embeds", "attention_mask", "logit_positions")
    named = [tensor for tensor in contracts(spec)[DECODER].inputs if tensor.name not in stock]
    sides = [tensor for tensor in named if not tensor.name.startswith("past_key_values.")]
    return [
        replace(
            tensor, shape=tuple(1 if axis == "batch" else "seq_len" if axis == "tokens" else axis for axis in tensor.shape)
        )
        for tensor in sides
        if tensor.name != "position_ids" or explicit_positions(spec.decoder)
    ]


def sequence_sides(spec: ModelSpec) -> list[TensorContract]:
    """Those of `decoder_sides` that have a part for each sequence, for a token of each of ``batch_size`` of them."""
    inputs = {tensor.name: tensor for tensor in contracts(spec)[DECODER].inputs}
    sides = []
    for tensor in (inputs[side.name] for side in decoder_sides(spec)):
        axis = sequence_axis(tensor)
        if axis is not None:
            shape = [
                "batch_size" if place == axis else 1 if size == "tokens" else size for place, size in enumerate(tensor.shape)
            ]
            sides.append(replace(tensor, shape=tuple(shape)))
    return sides


def text_selectors(spec: ModelSpec) -> dict[str, list[int]]:
    """What the others of `decoder_sides`, which select rows of a sequence, are for one text token."""
    each = {tensor.name for tensor in sequence_sides(spec)}
    return {name: rows for name, rows in spec.decoder.layer_kind.row_inputs([False]).items() if name not in each}


def most_patches(spec: ModelSpec, context: int) -> int:
    """Vision tokens of the largest picture that a package of this context is asked about.

    Where the grid is open, those are the patches behind as many image rows as fit the context; a connector with a fixed
    number of queries has no such relation, and pieces are about as large as the overview.
    """
    structure, joined = spec.vision.structure, spec.connector.patches_per_row
    if structure.patches is not None:
        return structure.patches + structure.special_tokens
    overview = (spec.image.overview // spec.image.patch) ** 2
    if joined is None or isinstance(spec.connector.rows, int):
        return overview
    return max(overview, min(spec.image_rows, context) * joined)


def overview_rows(spec: ModelSpec) -> int:
    """Rows of image features of the square picture that the phone's engine sends."""
    side = spec.image.overview // spec.image.patch
    return spec.connector.rows_of((side, side))


def score_blocks(heads: int, queries: int, keys: int, score_bytes: int = SCORE_BYTES) -> int:
    """Into how many blocks a tower's queries are divided."""
    return max(1, -(-4 * heads * queries * keys // score_bytes))
