"""How much each row of a prompt counts in the moments of decoder layers.

A prompt is mostly image rows and answers are a few tokens, but it is at the answer that logits are read. Counted row by
row, a layer's output error is that of image rows. So image rows, the prompt's other rows and the rows that answers are
read at count the same in total, none of them more than `MOST` times another (measured: docs/results/calibration.md).
The head is never read at image rows, and they count nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calibrate.samples.data import Prompt
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from torch import Tensor

MOST = 16.0
"""Largest ratio of two rows' weights, so that a handful of rows never decides a layer."""

IMAGE, TEXT, ANSWER = range(3)

HEAD = f"{DECODER}.head"


class RowWeights:
    """Weights of the rows of all calls, float32, of mean 1.

    Args:
        calls: the decoder's inputs, one call for each prompt.
        layer_rows: part of a layer's name to the input that says which rows it gets (`AdapterSpec.layer_rows`).
    """

    def __init__(self, prompts: Sequence[Prompt], calls: Sequence[Mapping[str, Any]], layer_rows: Mapping[str, str]) -> None:
        import torch

        self.calls, self.layer_rows = calls, layer_rows
        kinds = [row_kinds(prompt) for prompt in prompts]
        counts = torch.stack([(torch.cat(kinds) == kind).sum() for kind in (IMAGE, TEXT, ANSWER)]).double()
        weights = 1 / counts.clamp(min=1)  # of a kind that no row has, no row takes it
        weights = weights.clamp(max=MOST * float(weights.min()))
        weights *= counts.sum() / (weights * counts).sum()
        self.rows = [weights[kind].float() for kind in kinds]
        self.head_rows = [rows * (kind != IMAGE) for rows, kind in zip(self.rows, kinds, strict=True)]

    def of(self, call: int, layer: str, rows: int) -> Tensor | None:
        """Weights (rows,) of what a layer gets in a call; None where its rows are not the prompt's, as at a gate."""
        weights = (self.head_rows if layer == HEAD else self.rows)[call]
        for part in layer.split("."):
            index = self.calls[call].get(self.layer_rows.get(part, ""))
            if index is not None:
                weights = weights[index]
        return weights if len(weights) == rows else None


def row_kinds(prompt: Prompt) -> Tensor:
    """int64 (tokens,): `IMAGE`, `TEXT` or `ANSWER`; the token in front of an answer is where its first token is read."""
    import torch

    kinds = torch.where(torch.from_numpy(prompt.layout.image_rows), IMAGE, TEXT)
    kinds[len(kinds) - 1 - prompt.answer :] = ANSWER
    return kinds
