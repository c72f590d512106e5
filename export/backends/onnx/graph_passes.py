"""What is done to a traced graph for ONNX Runtime and the tools around it, in order."""

from __future__ import annotations

from export.passes.base import GraphPass
from export.passes.fuse_skip_norm import FuseSkipNorm
from export.passes.keep_last_logits import KeepLastLogits
from export.passes.name_axes import RenameAxes
from export.passes.split_packed_heads import SplitPackedHeads
from runtime_py.contracts import DECODER

AXES = {
    "batch": "batch_size",
    "tokens": "sequence_length",
    "past": "past_sequence_length",
    "total": "total_sequence_length",
    "outputs": "num_logits",
}
"""The contracts' names of axes to those of the field, by which transformers.js sizes the cache
(huggingface/transformers.js, src/models/modeling_utils.js; huggingface/optimum-onnx, optimum/exporters/onnx).
"""


def graph_passes(stage: str) -> list[GraphPass]:
    """The passes of a stage's graph."""
    passes: list[GraphPass] = [FuseSkipNorm(), SplitPackedHeads()]
    if stage == DECODER:
        passes.append(KeepLastLogits())
    return [*passes, RenameAxes(AXES)]
