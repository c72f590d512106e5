"""MiniCPM-Llama3-V 2.5: slices as in 2.0, positions along one row, Llama-3 turns.

The published code unfolds every piece into patches and hands the tower one row of them, so a patch's position is its place
in the piece, read row by row, spread over the first row of the table; where it lies in the picture enters with the
resampler's keys alone. Pieces are encoded one at a time, as the published code does with ``batch_vision_input`` false;
docs/families/minicpm-llama3-v.md says what its padded batch does otherwise. Sources: modeling_minicpmv.py, resampler.py
and tokenizer_config.json of openbmb/MiniCPM-Llama3-V-2_5, kept in theonlyengine/VQA_Model; transformers v4.40.0
models/idefics2/modeling_idefics2.py (``Idefics2VisionEmbeddings``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess import minicpm_v
from runtime_py.preprocess.base import ImageInputs, Message, TokenizerLike
from runtime_py.preprocess.pixels import HALF, normalise
from runtime_py.preprocess.resample import sine_table
from runtime_py.preprocess.slices import SliceRule, cut

log = logging.getLogger(__name__)

ROLES = ("user", "assistant")


class Processor(minicpm_v.Processor):
    """See runtime_py.preprocess.base.Processor; ``settings`` come from export/families/minicpm_llama3_v.

    Placeholder rows and their layout are those of MiniCPM-V 1.0 and 2.0.
    """

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        rule = SliceRule(self.settings["image_size"], self.settings["patch_size"], self.settings["max_slices"])
        found = []
        for source, picture in enumerate(pictures):
            pieces, grid = cut(picture, rule)
            found += [self._inputs(piece, source, grid) for piece in pieces]
        return found

    def _inputs(self, piece: np.ndarray, source: int, grid: tuple[int, int]) -> ImageInputs:
        rows, columns = (side // self.settings["patch_size"] for side in piece.shape[:2])
        vision = {
            "pixel_values": normalise(piece, HALF, HALF),
            "patch_positions": row_positions(rows * columns, self.settings["side"]),
        }
        connector = {"key_positions": sine_table(rows, columns, self.settings["width"])}
        return ImageInputs(vision, connector, self.settings["queries"], source, {"grid": np.array(grid)})

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        """See `Processor.encode`: BOS, then every turn between its header and the end-of-turn token, then the header of
        the answer.

        Raises:
            UsageError: no tokenizer; roles in an order that the published chat does not take; a picture placed twice, out of
                order, in an answer or nowhere; or the prompt's limit would cut a picture's rows. Text
                beyond the limit is cut from the right, as published, with a warning.
        """
        if self.tokenizer is None:
            raise UsageError("there is no tokenizer to encode text with", "a tokenizer", "construct the processor with one")
        _check_turns(messages, {image.source for image in images})
        token, words = self.tokens, self.tokenizer
        ids = [token["bos"]]
        rows_end = 0
        for message in messages:
            ids += self._header(message.role, words)
            parts: list[list[int] | str] = ["\n\n"]
            for picture in message.images:
                parts += [self._picture([image for image in images if image.source == picture], words), "\n"]
            parts.append(message.text if message.images else message.text.strip())
            for part in _trimmed(parts):
                if isinstance(part, str):
                    ids += words.encode(part)
                else:
                    ids += part
                    rows_end = len(ids)
            ids.append(token["eot"])
        ids += [*self._header("assistant", words), *words.encode("\n\n")]
        limit = self.settings["max_prompt_tokens"]
        if len(ids) > limit:
            if rows_end > limit:
                raise UsageError(
                    f"the pictures end at token {rows_end} of the prompt",
                    f"{limit} at most",
                    "send fewer or smaller pictures",
                )
            log.warning("prompt of %d tokens cut to the model's %d; the end of the question is lost", len(ids), limit)
        return np.asarray([ids[:limit]], dtype=np.int64)

    def _header(self, role: str, words: TokenizerLike) -> list[int]:
        return [self.tokens["start_header"], *words.encode(role), self.tokens["end_header"]]

    def _picture(self, pieces: Sequence[ImageInputs], words: TokenizerLike) -> list[int]:
        """Ids of the overview and of the grid: rows of cells joined by newlines between the slice marks."""
        token = self.tokens
        blocks = [[token["image_start"], *[token["unk"]] * piece.rows, token["image_end"]] for piece in pieces]
        columns, rows = pieces[0].state["grid"].tolist()
        ids = blocks[0]
        if columns:
            ids = [*ids, token["slice_start"]]
            for row in range(rows):
                ids += words.encode("\n") if row else []
                ids += [item for block in blocks[1 + row * columns : 1 + (row + 1) * columns] for item in block]
            ids.append(token["slice_end"])
        return ids


def _trimmed(parts: Sequence[list[int] | str]) -> list[list[int] | str]:
    """Neighbouring texts joined, and what is blank at the end of the turn taken off, as the published template trims it.

    The first text is the header's own newlines, which stay.
    """
    joined: list[list[int] | str] = []
    for part in parts:
        before = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(before, str):
            joined[-1] = before + part
        else:
            joined.append(part)
    last = joined[-1]
    if isinstance(last, str) and len(joined) > 1:
        joined[-1] = last.rstrip()
    return [part for part in joined if part]


def _check_turns(messages: Sequence[Message], sources: set[int]) -> None:
    roles = [message.role for message in messages]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk[0] != "user" or not set(talk) <= set(ROLES):
        raise UsageError(
            f"the conversation's roles are {roles}",
            "at most one system prompt in front, then user and assistant, the user first",
            "reorder the messages",
        )
    placed = [image for message in messages if message.role == "user" for image in message.images]
    count = sum(len(message.images) for message in messages)
    if placed != sorted(sources) or count != len(placed):
        raise UsageError(
            f"{count} pictures placed in the conversation as {placed}, {len(sources)} given",
            "every picture once and in order, in the user's turns",
            "name each picture in the question that it belongs to",
        )


def row_positions(count: int, side: int) -> np.ndarray:
    """int64 (count,) rows of a side x side table for one row of patches: their bucket among ``side``, on table row 0.

    The published step is one over a count that is a tensor, so float32; the boundaries' step is a Python number.
    """
    boundaries = float32_range(1 / side, 1 / side, side - 1)
    places = float32_range(0.0, float(np.float32(1) / np.float32(count)), count)
    return np.searchsorted(boundaries, places, side="right").astype(np.int64)


def float32_range(start: float, step: float, count: int) -> np.ndarray:
    """What ``torch.arange`` gives on a CPU with vectors of eight: each block's first value is rounded, then added to; the
    values after the last whole block are rounded one by one.
    """
    index = np.arange(count)
    first = index - index % 8
    in_blocks = (start + first * step).astype(np.float32) + (index - first) * step
    return np.where(first + 8 <= count, in_blocks, start + index * step).astype(np.float32)
