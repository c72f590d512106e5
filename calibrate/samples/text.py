"""Plain text as samples: windows of tokens, read from the first to the last without any prompt around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibrate.samples.data import Prompt
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Processor, TokenizerLike

WINDOW = 512
"""Tokens that are read together; each window begins with an empty cache."""


def text_prompts(
    files: Sequence[Path], tokens: int, processor: Processor, tokenizer: TokenizerLike, window: int = WINDOW
) -> list[Prompt]:
    """Windows of the first ``tokens`` tokens of the files, one after the other; every token but a window's first is told.

    Raises:
        UsageError: a file cannot be read as UTF-8, or the files hold fewer tokens.
    """
    ids: list[int] = []
    for path in files:
        ids += tokenizer.encode(_text(path))
    if len(ids) < tokens or tokens < 2:
        names = ", ".join(path.name for path in files)
        raise UsageError(
            f"{names}: {len(ids)} tokens of text", f"at least {max(tokens, 2)} of them", "give more text, or fewer --tokens"
        )
    starts = range(0, tokens, window)
    pieces = [np.array([ids[start : min(start + window, tokens)]], dtype=np.int64) for start in starts]
    return [Prompt((), processor.layout(piece, []), piece.shape[1] - 1) for piece in pieces]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", "plain text in UTF-8", "name another file") from error
