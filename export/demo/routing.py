"""Routed experts over whole batches: the gate of a decoder that chooses per request, for many requests in one call."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.demo.dialogues import UNLABELLED, Dialogue
from export.modules.decoders.low_rank import Gate


def gate_whole_batches(decoder: nn.Module) -> None:
    """Let every gate take ``gate_input`` (batch, tokens or 1, hidden) and give channel weights for each of its rows."""
    for module in decoder.modules():
        if isinstance(module, Gate):
            module.forward = MethodType(_batched, module)  # type: ignore[method-assign]


def _batched(gate: Gate, gate_input: Tensor) -> Tensor:
    """`Gate.forward` with its roundings, row by row; the choice has no gradient, the two weights have."""
    spec = gate.spec
    logits = F.linear(gate.norm(gate_input), gate.weight, gate.bias)
    share = torch.softmax(logits.half().float(), dim=-1).half().float()
    top = share.amax(-1, keepdim=True)
    chosen = F.one_hot(share.argmax(-1), spec.experts).float()
    weights = torch.cat([chosen * top * top, (1 - top).half().float()], dim=-1) * spec.scale
    return weights.repeat_interleave(spec.rank, dim=-1)


def gate_inputs(dialogues: Sequence[Dialogue], merged: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Prefill and decode gate inputs (dialogues, 1, hidden): means over each one's span, with image rows and without."""
    spans = [dialogue.state["span"] for dialogue in dialogues]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([row[start:end].mean(0, keepdim=True) for row, (start, end) in zip(rows, spans, strict=True)])

    return means(merged), means(raw)


def by_phase(dialogues: Sequence[Dialogue], inputs: tuple[Tensor, Tensor], tokens: int) -> Tensor:
    """Gate inputs (dialogues, tokens, hidden): the prefill gate reads a prompt, the decode gate the answer behind it."""
    prefill, decode = inputs
    prompt = torch.tensor([dialogue.prompt for dialogue in dialogues])[:, None, None]
    return torch.where(torch.arange(tokens)[None, :, None] < prompt, prefill, decode)


def last_labels(dialogues: Sequence[Dialogue]) -> Tensor:
    """Labels (dialogues, longest) of the last answers alone: an earlier one was spoken with the gates of another request."""
    labels = torch.full((len(dialogues), max(len(dialogue.ids) for dialogue in dialogues)), UNLABELLED)
    for row, dialogue in enumerate(dialogues):
        labels[row, dialogue.prompt - 1 : len(dialogue.ids)] = torch.from_numpy(dialogue.labels[dialogue.prompt - 1 :])
    return labels
