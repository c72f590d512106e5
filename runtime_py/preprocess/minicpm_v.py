"""MiniCPM-V 1.0 and 2.0: squash or slice, prompt, placeholder rows.

1.0 squashes the picture to one square; 2.0 keeps its aspect and adds slices. The prompt is ordinary text but for the
ids around and inside the image blocks. Source: modeling_minicpmv.py of the 1.0 and 2.0 hub files, ``chat`` and
``get_slice_image_placeholder`` (see docs/families/minicpm-v.md).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, TokenizerLike
from runtime_py.preprocess.pixels import HALF, kernel, normalise, resize
from runtime_py.preprocess.resample import antialiased_bicubic, sine_table
from runtime_py.preprocess.slices import SliceRule, cut

log = logging.getLogger(__name__)

ROLES = {"user": "<用户>", "assistant": "<AI>"}


class Processor:
    """See runtime_py.preprocess.base.Processor; ``settings`` come from export/families/minicpm_v."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        self.settings = settings
        self.tokens: Mapping[str, int] = settings["tokens"]
        self.tokenizer = tokenizer
        self.sliced = settings["variant"] == "2.0"

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        found = []
        for source, picture in enumerate(pictures):
            if self.sliced:
                rule = SliceRule(self.settings["scale_resolution"], self.settings["patch_size"], self.settings["max_slices"])
                pieces, grid = cut(picture, rule)
            else:
                size = self.settings["image_size"]
                pieces, grid = [resize(picture, size, size, kernel(self.settings))], (0, 0)
            found += [self._inputs(piece, source, grid) for piece in pieces]
        return found

    def _inputs(self, piece: np.ndarray, source: int, grid: tuple[int, int]) -> ImageInputs:
        vision: dict[str, np.ndarray] = {"pixel_values": normalise(piece, HALF, HALF)}
        connector: dict[str, np.ndarray] = {}
        if self.sliced:
            patch, native = self.settings["patch_size"], self.settings["native_grid"]
            rows, columns = piece.shape[0] // patch, piece.shape[1] // patch
            vision["row_weights"] = position_matrix(native, rows, (rows, columns))
            vision["column_weights"] = position_matrix(native, columns, (rows, columns))
            connector["key_positions"] = sine_table(rows, columns, self.settings["width"])
        return ImageInputs(vision, connector, self.settings["queries"], source, {"grid": np.array(grid)})

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        """See `Processor.encode`: BOS, then the turns with no separators, then the mark of the answer.

        Raises:
            UsageError: roles do not alternate from user to user; a picture is not in the first turn, or is not the only
                one; or the prompt's limit would cut the picture's rows. Text beyond the limit is cut from the right,
                as published, with a warning.
        """
        if self.tokenizer is None:
            raise UsageError("there is no tokenizer to encode text with", "a tokenizer", "construct the processor with one")
        _check_turns(messages, {image.source for image in images})
        ids = [self.tokens["bos"]]
        text = ""
        for message in messages:
            text += ROLES[message.role]
            if message.images:
                ids += [*self.tokenizer.encode(text), *self._image_block(images)]
                text = "\n"
            text += message.text
        rows_end = len(ids) if images else 0
        ids += self.tokenizer.encode(text + ROLES["assistant"])
        limit = self.settings["max_prompt_tokens"]
        if len(ids) > limit:
            if rows_end > limit:
                raise UsageError(
                    f"the picture's {rows_end} tokens do not fit the prompt", f"{limit} at most", "send a smaller picture"
                )
            log.warning("prompt of %d tokens cut to the model's %d; the end of the question is lost", len(ids), limit)
        return np.asarray([ids[:limit]], dtype=np.int64)

    def _image_block(self, images: Sequence[ImageInputs]) -> list[int]:
        """Ids of the overview and, in 2.0, of the grid: rows of cells joined by newlines between the slice marks."""
        token = self.tokens

        def piece(image: ImageInputs) -> list[int]:
            return [token["image_start"], *[token["unk"]] * image.rows, token["image_end"]]

        columns, rows = images[0].state["grid"].tolist()
        ids = piece(images[0])
        if columns:
            ids.append(token["slice_start"])
            for row in range(rows):
                ids += [token["newline"]] * (row > 0)
                for image in images[1 + row * columns : 1 + (row + 1) * columns]:
                    ids += piece(image)
            ids.append(token["slice_end"])
        return ids

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = np.zeros(ids.shape[1], dtype=bool)
        starts = np.flatnonzero(ids[0] == self.tokens["image_start"]) + 1
        ends = np.flatnonzero(ids[0] == self.tokens["image_end"])
        if len(starts) != len(ends) or len(starts) != len(images):
            raise UsageError(
                f"the prompt has {len(starts)} image start and {len(ends)} image end tokens for {len(images)} image pieces",
                "one <image> ... </image> pair per picture or slice",
                "pass the pictures the prompt speaks of, and leave these marks out of the text",
            )
        for start, end, piece in zip(starts, ends, images, strict=True):
            if end - start != piece.rows:
                raise UsageError(
                    f"{end - start} placeholder tokens between <image> and </image>", f"{piece.rows}", "rebuild the prompt"
                )
            rows[start:end] = True
        return Layout(ids, rows, {"position_ids": np.arange(ids.shape[1], dtype=np.int64)[None]})

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        return {"position_ids": np.array([[length]], dtype=np.int64)}


def _check_turns(messages: Sequence[Message], sources: set[int]) -> None:
    roles = [message.role for message in messages]
    wanted = ["user", "assistant"] * (len(roles) // 2) + ["user"]
    if roles != wanted:
        raise UsageError(
            f"the conversation's roles are {roles}",
            "user, assistant, user, ... ending with user; these models know no system prompt",
            "reorder the messages, or put instructions into the first question",
        )
    placed = [(turn, image) for turn, message in enumerate(messages) for image in message.images]
    if placed != [(0, source) for source in sorted(sources)] or len(placed) > 1:
        raise UsageError(
            f"{len(placed)} pictures in turns {[turn + 1 for turn, _ in placed]}, {len(sources)} given",
            "MiniCPM-V 1.0 and 2.0 take one picture, with the first question",
            "start a new conversation for another picture",
        )


def position_matrix(native: int, size: int, grid: tuple[int, int]) -> np.ndarray:
    """float32 (size, native) resampling matrix; the identity when the whole grid is the native square."""
    if grid == (native, native):
        return np.eye(native, dtype=np.float32)
    return antialiased_bicubic(native, size).astype(np.float32)
