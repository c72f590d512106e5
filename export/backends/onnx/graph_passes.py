"""What is done to a traced graph for ONNX Runtime, in order."""

from __future__ import annotations

import numpy as np

from export.passes.base import GraphPass
from export.passes.default_input import DefaultInput
from export.passes.fuse_skip_norm import FuseSkipNorm
from export.passes.split_packed_heads import SplitPackedHeads
from runtime_py.contracts import DECODER


def graph_passes(stage: str) -> list[GraphPass]:
    """The passes of a stage's graph; a decoder whose caller names no position gives the logits of the last."""
    passes: list[GraphPass] = [FuseSkipNorm(), SplitPackedHeads()]
    if stage == DECODER:
        passes.append(DefaultInput("logit_positions", np.array([-1], np.int64)))
    return passes
