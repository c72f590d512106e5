"""Tokens that go through weights of their own (visual experts, deltas of image rows): a graph's indices of tokens.

A token of an answer is text, and so is one that is guessed: in functions of steps and guesses no index is looked at, and
what image rows would go through is left out. A prompt's functions take the indices of experts, and each set of weights
multiplies its own rows, however few; or those of deltas of image rows, which are products of those rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from tvm import relax, tirx

from export.backends.onnx.decoder_library.values import Nobody, Tokens, Value
from runtime_py.backends.token_routes import BACK, DELTA

EXPERTS: Mapping[str, Value] = {"language_index": Tokens(), "vision_index": Nobody(), BACK: Tokens()}
DELTAS: Mapping[str, Value] = {"image_index": Nobody(), DELTA: Tokens()}
"""What indices stand for in a call whose tokens are all text."""


@dataclass(frozen=True)
class Routes:
    """The indices of one graph.

    Attributes:
        plain: what each stands for where all tokens are text.
    """

    plain: Mapping[str, Value]

    @property
    def given(self) -> list[str]:
        """Indices that functions of prompts take behind the lengths, in this order."""
        return list(self.plain)

    @property
    def absent(self) -> list[str]:
        """Indices that are empty where all tokens are text."""
        return [name for name, value in self.plain.items() if isinstance(value, Nobody)]

    def arguments(self, tokens: tirx.Var) -> dict[str, relax.Var]:
        """Arguments of a prompt's function, by name: those that name the rows of a set, and the way back for each token."""
        sizes = {name: tirx.Var(f"{name}_rows", "int64") for name in self.given}
        sizes |= dict.fromkeys((BACK, DELTA), tokens)
        return {name: relax.Var(name, relax.TensorType((sizes[name],), "int64")) for name in self.given}

    def bounds(self, tokens: int) -> dict[str, int]:
        """The most rows of each set in a call of so many tokens."""
        return {f"{name}_rows": tokens for name in self.given}


def routes_of(graph: onnx.GraphProto) -> Routes:
    """The indices among a graph's inputs; none where every token is taken alike."""
    names = {value.name for value in graph.input}
    return Routes(next((plain for plain in (EXPERTS, DELTAS) if names.issuperset(plain)), {}))
