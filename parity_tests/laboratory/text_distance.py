"""How far what two decoders say of a text is apart, each window of it read from nothing."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from parity_tests.check.candidate import Candidate
from runtime_py.backends.base import Backend
from runtime_py.generation.session import Limits, Session
from runtime_py.model import load


def windows_of(given: argparse.Namespace) -> np.ndarray:
    """int64 (windows, tokens) of the text, by the package's tokenizer."""
    with load(given.package, None, "off", trust=True) as model:
        ids = model.tokenizer.encode(given.text.read_text(encoding="utf-8")[: 40 * given.windows * given.tokens])
    return np.array(ids[: given.windows * given.tokens], np.int64).reshape(given.windows, given.tokens)


def log_probabilities(backend: Backend, side: Candidate, windows: np.ndarray) -> Tensor:
    """Of what follows every token of int64 (windows, tokens), each window read from nothing: (rows, vocabulary)."""
    session = Session(backend, side.processor, Limits(windows.shape[1] + 1, windows.shape[1]))
    rows = []
    for ids in windows:
        layout = side.processor.layout(ids[None], [])
        session.reset()
        rows.append(session.prefill(session.embed(layout.input_ids), layout, "all")[0])
    return torch.from_numpy(np.concatenate(rows)).log_softmax(-1)


def apart(reference: Tensor, other: Tensor) -> str:
    """Mean and median KL divergence in nats, and how often both have one best token."""
    divergence = (reference.exp() * (reference - other)).sum(-1)
    equal = (reference.argmax(-1) == other.argmax(-1)).float().mean()
    return f"{divergence.mean():.4f} | {divergence.median():.4f} | {100 * equal:.1f} %"


def perplexity(said: Tensor, windows: np.ndarray) -> float:
    """Of the text, without the token behind each window."""
    following = torch.from_numpy(np.concatenate([np.append(ids[1:], -1) for ids in windows]))
    known = following >= 0
    return float(said[known].gather(1, following[known][:, None]).mean().neg().exp())
