"""What the processors of all families are made of, and the positions of those that count tokens one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime_py.preprocess.base import Layout, TokenizerLike
from runtime_py.prompt.encoder import PromptEncoder


class PromptedProcessor:
    """Its package's settings, the tokenizer, and the prompt that both give; without a tokenizer no text is encoded."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.prompt = PromptEncoder(settings, tokenizer)


class CountingProcessor(PromptedProcessor):
    """One whose tokens, rows of pictures included, have the positions 0, 1, 2 and so on."""

    def counted(self, tokens: int) -> dict[str, np.ndarray]:
        """Decoder inputs of the first ``tokens``: int64 (1, tokens)."""
        return {"position_ids": np.arange(tokens, dtype=np.int64)[None]}

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        """Decoder inputs of one token behind ``length`` others."""
        return {"position_ids": np.array([[length]], dtype=np.int64)}
