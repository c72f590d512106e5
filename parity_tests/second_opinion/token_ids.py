"""Ids of texts: our tokenizer against transformers' for tokenizer.json, and against sentencepiece for tokenizer.model.

transformers 5 reads a tokenizer.model in another way than the 4.36 that these models were published with (a text that begins
with a space loses it), so that the library that the file belongs to is asked instead. Where a checkpoint brings a chat
template with a form for it, the ids of a conversation are compared too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.judging.metrics import Kind
from parity_tests.second_opinion.opinion import Finding, NotComparable, Part
from parity_tests.second_opinion.subject import Subject
from runtime_py import tokenizer
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.processors import make_processor

TEXTS = (
    "What color is the circle?",
    " two  spaces\n\nand\ttabs, then a line\r\n",
    "你好，世界！圆形是什么颜色？",
    "naïve café, Größe, Ελληνικά, русский, العربية, हिन्दी, ไทย",
    "😀 👨\u200d👩\u200d👧 ½ ㎏ ﬁ \u00a0 \u3000 \u200b",
    "def f(x: int) -> int:\n    return x ** 2 + 1  # {'a': [1, 2.5e-3]}",
    "a" * 300 + " 1234567890 " + "=" * 40,
)

CONVERSATION = (
    ("system", "Answer in one word."),
    ("user", "What color is the sky?"),
    ("assistant", "Blue."),
    ("user", "And the grass? "),
)
WHOLE = ("tokenizer.json", "tokenizer.model")
"""Files that a tokenizer can be read from without another."""

TEMPLATES = ("qwen2-vl", "awaker2.5-vl")
"""Families whose published template is a file of the checkpoint; the others' is code."""


def ask(subject: Subject) -> Iterator[Finding]:
    """Texts, then a conversation."""
    folder = next((one for one in _folders(subject) if any((one / name).is_file() for name in WHOLE)), None)
    if folder is None:
        raise NotComparable("the checkpoint has no tokenizer")
    ours = tokenizer.load(folder)
    for library, theirs in _theirs(folder).items():
        for number, text in enumerate(TEXTS, 1):
            made = theirs(text)
            yield Finding(
                f"text {number} ({library})", Kind.EXACT, _row(made, ours.encode(text)), _row(ours.encode(text), made)
            )
    if subject.family in TEMPLATES and (folder / "tokenizer.json").is_file():
        yield from _conversation(subject, folder, ours)


def _folders(subject: Subject) -> list[Path]:
    return subject.opened.family.side_folders(subject.folder, subject.opened.stated)


def _theirs(folder: Path) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    if (folder / "tokenizer.json").is_file():
        library = _fast(folder)
        asked["transformers"] = lambda text: library.encode(text, add_special_tokens=False)
    if (folder / "tokenizer.model").is_file():
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise NotComparable("sentencepiece is not installed") from error
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        asked["sentencepiece"] = pieces.encode
    return asked


def _fast(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _conversation(subject: Subject, folder: Path, ours: tokenizer.Tokenizer) -> Iterator[Finding]:
    library = _fast(folder)
    if not library.chat_template:
        return
    turns = [{"role": role, "content": text} for role, text in CONVERSATION]
    made = library.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    processor = make_processor(subject.opened.family.processor, subject.spec.runtime, ours)
    said = processor.encode([Message(role, text) for role, text in CONVERSATION], [])[0].tolist()
    yield Finding("conversation of four turns", Kind.EXACT, _row(made, said), _row(said, made))


def _row(ids: list[int], other: list[int]) -> np.ndarray:
    """Ids as long as the longer of the two, so that a difference in length is one in ids."""
    return np.array([*ids, *[-1] * (len(other) - len(ids))], dtype=np.int64)


PART = Part(
    name="ids",
    stage="tokenizer",
    covers="tables, merges, spaces, marks, the chat template",
    against=dict.fromkeys(
        ("minicpm-v", "minicpm-llama3-v", "omnilmm-12b", "wemm", "xverse-v", "cogvlm2", "qwen2-vl", "awaker2.5-vl"),
        "PreTrainedTokenizerFast, sentencepiece",
    ),
    examine=dict.fromkeys(
        ("minicpm-v", "minicpm-llama3-v", "omnilmm-12b", "wemm", "xverse-v", "cogvlm2", "qwen2-vl", "awaker2.5-vl"), ask
    ),
)
