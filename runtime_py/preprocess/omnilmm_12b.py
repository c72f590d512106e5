"""OmniLMM-12B: squash to a square, Zephyr prompt, image rows between <im_start> and <im_end>.

Source: OpenBMB/MiniCPM-V at 0dbb566d, omnilmm/model/utils.py (build_transform, omni_preprocess), chat.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, TokenizerLike
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise, resize

SYSTEM = (
    "You are an artificial intelligence assistant, "
    "which gives helpful, detailed, and polite answers to the human's questions."
)
MARKERS = {"im_patch_token": "<im_patch>", "im_start_token": "<im_start>", "im_end_token": "<im_end>"}


class Processor:
    """See runtime_py.preprocess.base.Processor; ``settings`` come from export/families/omnilmm_12b."""

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        self.settings = settings
        self.tokenizer = tokenizer

    def _id(self, marker: str) -> int:
        """Id of an image marker: looked up by its string, never assumed."""
        fixed = self.settings["token_ids"].get(marker)
        found = fixed if fixed is not None or self.tokenizer is None else self.tokenizer.token_id(MARKERS[marker])
        if found is None:
            raise UsageError(
                f"the tokenizer has no token {MARKERS[marker]}",
                "the three image tokens upstream adds",
                "use the published tokenizer",
            )
        return found

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        if len(pictures) > 1:
            raise UsageError(
                f"{len(pictures)} pictures in one conversation",
                "one: the published code keeps only the last of several",
                "ask about one picture at a time",
            )
        size = self.settings["image_size"]
        return [
            ImageInputs(
                {"pixel_values": normalise(resize(picture, size, size), CLIP_MEAN, CLIP_STD)},
                {},
                self.settings["queries"],
                index,
            )
            for index, picture in enumerate(pictures)
        ]

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        if self.tokenizer is None:
            raise UsageError(
                "this package has no tokenizer", "tokenizer files", "export again from a checkpoint that has them"
            )
        image = "<im_start>" + "<im_patch>" * self.settings["queries"] + "<im_end>"
        parts = [f"<|system|>\n{SYSTEM}</s>\n"]
        for message in messages:
            text = message.text
            if message.images:
                text = text.replace("<image>", image, 1) if "<image>" in text else f"{image}\n{text}"
            parts.append(f"<|{message.role}|>\n{text}</s>\n")
        parts.append("<|assistant|>\n")
        ids = [self.settings["bos"], *self.tokenizer.encode("".join(parts))]
        limit = self.settings["max_prompt_tokens"]
        if len(ids) > limit:
            raise UsageError(f"the prompt has {len(ids)} tokens", f"{limit} at most", "shorten the conversation")
        return np.asarray([ids], dtype=np.int64)

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = np.zeros(ids.shape[1], dtype=bool)
        if images:
            starts = np.flatnonzero(ids[0] == self._id("im_start_token")) + 1
            if len(starts) != len(images):
                raise UsageError(
                    f"{len(starts)} <im_start> tokens for {len(images)} pictures", "one each", "rebuild the prompt"
                )
            for start, piece in zip(starts, images, strict=True):
                end = start + piece.rows
                if end >= ids.shape[1] or ids[0, end] != self._id("im_end_token"):
                    raise UsageError(
                        "no <im_end> after the image rows", f"{piece.rows} rows, then <im_end>", "rebuild the prompt"
                    )
                rows[start:end] = True
        return Layout(ids, rows, {"position_ids": np.arange(ids.shape[1], dtype=np.int64)[None]})

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        return {"position_ids": np.array([[length]], dtype=np.int64)}
