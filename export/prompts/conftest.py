"""Every kind of prompt with a tokenizer and a picture of its own, small enough to render thousands of conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.families.base import Family
from export.families.config.vocabulary import TOKENS, added_tokens
from export.families.registry import families
from export.package.tokenizer_files import ensure_tokenizer_json
from export.source.tensor_source import EmptySource
from runtime_py import tokenizer
from runtime_py.generation import conversation
from runtime_py.preprocess.base import ImageInputs, Message, Processor
from runtime_py.preprocess.spliced import IMAGE
from runtime_py.prompt.format import PromptFormat, prompt_of

DEMOS = Path(__file__).parents[1] / "demo" / "checkpoints"
LLAMA3_MARKS = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "</image>",
    "<slice>",
    "</slice>",
    "<unk>",
)

Run = str | list[int]
Conversation = list[dict[str, Any]]
"""Turns as a caller writes them: role and content, the content a text or a list of parts."""


@dataclass(frozen=True)
class Speaker:
    """One model's prompt, ready to speak.

    Attributes:
        family: registry name.
        words: the tokenizer that the runtime opens.
        library: text to ids by another library's hand, special tokens in it included.
        phone: the same of the tokenizer.json that a phone's package carries.
        clip: its pictures are clips of frames.
        block: what the published code puts for a picture of these pieces, of a family whose own test says it.
    """

    name: str
    family: str
    form: PromptFormat
    processor: Processor
    words: tokenizer.Tokenizer
    library: Callable[[str], list[int]]
    phone: Callable[[str], list[int]]
    stop_ids: tuple[int, ...]
    clip: bool = False
    block: Callable[[Sequence[ImageInputs]], Run] | None = None

    def turns(self, talk: Conversation) -> tuple[list[Message], list[ImageInputs]]:
        """The conversation as the processor reads it; every image part is a picture of another shape."""
        count = sum(part != "text" for part in kinds(talk))
        messages, pictures = conversation.read(talk, [picture(index) for index in range(count)])
        if self.clip:
            pictures = [np.stack([shown, shown[::-1]]) for shown in pictures]
        return messages, self.processor.images(pictures) if pictures else []

    def ids(self, talk: Conversation) -> list[int]:
        """Prompt ids of the processor."""
        return self.processor.encode(*self.turns(talk))[0].tolist()

    def blocks(self, talk: Conversation) -> list[Run]:
        """What the published code puts for each picture of a conversation: text, or ids."""
        _, images = self.turns(talk)
        sources = [[image for image in images if image.source == source] for source in sorted({i.source for i in images})]
        return [self._block(pieces) for pieces in sources]

    def _block(self, pieces: Sequence[ImageInputs]) -> Run:
        marks = self.form.picture
        if self.block is not None:
            return self.block(pieces)
        if marks.spliced:
            return [IMAGE]
        if self.family == "cogvlm2":
            frame = [self.words.ids[marks.row]] * self.processor.settings["rows"]  # type: ignore[attr-defined]
            numbered = self.clip and self.form.name == "cogvlm2_chat"
            frames = range(pieces[0].rows // len(frame))
            return [token for index in frames for token in frame + (self.library(str(index)) if numbered else [])]
        cells = [marks.before + marks.row * piece.rows + marks.after for piece in pieces]
        columns, rows = (int(size) for size in pieces[0].state["grid"][:2]) if marks.slices else (0, 0)
        if not columns:
            return cells[0]
        lines = ["".join(cells[1 + line * columns : 1 + (line + 1) * columns]) for line in range(rows)]
        return f"{cells[0]}<slice>" + "\n".join(lines) + "</slice>"


def ids_of(runs: Sequence[Run], encode: Callable[[str], list[int]]) -> list[int]:
    """Ids of texts and of ids between them; neighbouring texts are encoded as one."""
    ids: list[int] = []
    text = ""
    for run in [*runs, []]:
        if isinstance(run, str):
            text += run
            continue
        ids += (encode(text) if text else []) + run
        text = ""
    return ids


def kinds(talk: Conversation) -> list[str]:
    """Kind of every part of every turn."""
    return [
        part["type"]
        for turn in talk
        for part in ([{"type": "text"}] if isinstance(turn["content"], str) else turn["content"])
    ]


def picture(index: int) -> np.ndarray:
    """A uint8 picture whose shape tells it from the others'."""
    return np.full((60 + 40 * index, 90, 3), 40 + index, np.uint8)


SPEAKERS = (
    "minicpm-v",
    "minicpm-v-2",
    "minicpm-llama3-v",
    "omnilmm-12b",
    "wemm",
    "xverse-v",
    "awaker2.5-vl",
    "qwen2-vl",
    "cogvlm2",
    "cogvlm2-base",
    "cogvlm2-video",
    "cogvlm2-caption",
)


@pytest.fixture(params=SPEAKERS)
def speaker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """Every prompt that is built, one after the other."""
    return speaker_of(request.param, tmp_path_factory.getbasetemp())


@cache
def speaker_of(name: str, scratch: Path) -> Speaker:
    """One of `SPEAKERS`; ``scratch`` is a folder for its tokenizer files."""
    demo = {"minicpm-v-2": "minicpm-v", "qwen2-vl": "awaker2.5-vl"}.get(name, name)
    demo = "cogvlm2" if name.startswith("cogvlm2") or name == "minicpm-llama3-v" else demo
    family = families()[name if name in families() else demo]
    place = DEMOS / demo
    if name == "minicpm-llama3-v":
        place = bpe_tokenizer(scratch / "llama3", LLAMA3_MARKS)
        config = dict(family.published_config("", "tiny")) | {"vocab_size": 4000, TOKENS: added_tokens(place)}
    else:
        config = {**family.load_config(place), **_changes(name)}
    return speaker_for(family, place, config, scratch / f"{name}.tokenizer.json", name)


def speaker_for(
    family: Family,
    place: Path,
    config: Mapping[str, Any],
    made: Path,
    name: str = "",
    block: Callable[[Sequence[ImageInputs]], Run] | None = None,
) -> Speaker:
    """Any family's prompt, here or in a distribution of its own.

    Args:
        place: folder of its tokenizer, e.g. `bpe_tokenizer`.
        config: what its ``spec`` reads, in whose vocabulary the tokenizer fits.
        made: where the phone's tokenizer.json is written.
        block: see `Speaker`.
    """
    words = tokenizer.load(place)
    spec = family.spec(config, EmptySource())
    ensure_tokenizer_json(place, made)
    return Speaker(
        name=name or family.name,
        family=family.name,
        form=prompt_of(spec.runtime),
        processor=family.make_processor(spec, words),
        words=words,
        library=_library(place),
        phone=_tokenizers(made),
        stop_ids=tuple(spec.generation["stop_ids"]),
        clip=bool(spec.runtime.get("video")),
        block=block,
    )


def _changes(name: str) -> Mapping[str, Any]:
    video: dict[str, Any] = {"architectures": ["CogVLMVideoForCausalLM"]}
    changes: dict[str, Mapping[str, Any]] = {
        "minicpm-v-2": {"slice_mode": True, "scale_resolution": 56, "max_slice_nums": 9},
        "cogvlm2-base": {"template_version": "base"},
        "cogvlm2-video": video,
        "cogvlm2-caption": video | {"template_version": "base"},
    }
    return changes.get(name, {})


def bpe_tokenizer(folder: Path, marks: Sequence[str]) -> Path:
    """CogVLM2's demo tokenizer, which is Llama-3's in small (fewer than 4000 pieces), with a family's marks; its folder."""
    from tokenizers import Tokenizer

    folder.mkdir(exist_ok=True)
    made = Tokenizer.from_file(str(DEMOS / "cogvlm2" / "tokenizer.json"))
    made.add_special_tokens(list(marks))
    made.save(str(folder / "tokenizer.json"))
    return folder


def _tokenizers(path: Path) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(path))
    return lambda text: library.encode(text, add_special_tokens=False).ids


def _library(place: Path) -> Callable[[str], list[int]]:
    """Whole texts by tokenizers, or by sentencepiece between the control tokens and those that the config adds."""
    import re

    from sentencepiece import SentencePieceProcessor

    if not (place / "tokenizer.model").is_file():
        return _tokenizers(place / "tokenizer.json")
    model = SentencePieceProcessor(model_file=str(place / "tokenizer.model"))
    rows = json.loads((place / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    marks = {row["content"]: int(index) for index, row in rows.items()} | {"<unk>": 0, "<s>": 1, "</s>": 2}
    pattern = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def encode(text: str) -> list[int]:
        pieces = [piece for piece in pattern.split(text) if piece]
        return [token for piece in pieces for token in ([marks[piece]] if piece in marks else model.encode(piece))]

    return encode
