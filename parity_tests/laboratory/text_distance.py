"""How far what two decoders say of a text is apart, each window of it read from nothing: the flags, figures and table."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parity_tests.check.candidate import Candidate
from runtime_py.backends.base import Backend
from runtime_py.command import console
from runtime_py.generation.session import Limits, Session
from runtime_py.model import load


def reading_flags(made: argparse.ArgumentParser, package: str, checkpoint: str = "", required: bool = True) -> None:
    """What is read through which package and checkpoint.

    Args:
        package: what kind of package it must be.
        checkpoint: what is done where it is given; ``required``: whether it must be.
    """
    made.add_argument("--package", type=Path, required=True, metavar="DIR", help=package)
    made.add_argument(
        "--checkpoint", type=Path, required=required, metavar="DIR", help=f"{checkpoint}what the package was made from"
    )
    made.add_argument("--text", type=Path, default=Path("docs/design.md"), metavar="FILE", help="default %(default)s")
    made.add_argument("--windows", type=int, default=4, metavar="N", help="default 4")
    made.add_argument("--tokens", type=int, default=192, metavar="N", help="of a window; default 192")


class DistanceTable:
    """A row of stdout for everything that reads the text: its perplexity, and how far it is from two others.

    Args:
        windows: int64 (windows, tokens).
        full: log probabilities in float32; codes: of a package's weights in float32, called ``nearer`` in the head.
        of: what the rows are.
    """

    def __init__(self, windows: np.ndarray, full: Tensor, codes: Tensor, nearer: str, of: str = "") -> None:
        self._windows, self._full, self._codes = windows, full, codes
        columns, float32 = "mean KL | median | same best", perplexity(full, windows)
        console.out(f"{windows.size} tokens in {len(windows)} windows; perplexity in float32 {float32:.2f}")
        console.out(f"| {of} | perplexity | from {nearer}: {columns} | from float32: {columns} |")
        console.out("|---" * 8 + "|")

    def row(self, name: str, said: Tensor) -> None:
        """Log probabilities (rows, vocabulary), as `log_probabilities` gives them."""
        console.out(
            f"| {name} | {perplexity(said, self._windows):.2f} | {apart(self._codes, said)} | {apart(self._full, said)} |"
        )


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
