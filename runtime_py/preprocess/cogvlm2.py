"""CogVLM2 and CogVLM2-Video: pictures or frames, prompt templates, shared positions, expert routing.

Source: THUDM/cogvlm2-llama3-chat-19B modeling_cogvlm.py and THUDM/cogvlm2-llama3-caption (see docs/families/cogvlm2.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_py.errors import ImageError, UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, TokenizerLike
from runtime_py.preprocess.extent import FLOAT_BYTES, PIXEL_BYTES, Extent, square_extent
from runtime_py.preprocess.frames import centre_crop, scaled_sides, shortest_side_bilinear
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise, resize
from runtime_py.preprocess.prompted import PromptedProcessor

PATCH = 14
"""Side of the tower's patches, which the settings do not hold."""


class Processor(PromptedProcessor):
    """One picture or one video a conversation, and which expert reads each token.

    A video is one picture of four axes: uint8 (frames, height, width, 3).
    """

    def __init__(self, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> None:
        super().__init__(settings, tokenizer)
        self.video: bool = settings["video"]
        self.reads_clips = self.video

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        if len(pictures) > 1:
            raise UsageError(
                f"{len(pictures)} {'clips' if self.video else 'pictures'} in one conversation",
                "one, as the published code asserts",
                "ask about one at a time",
            )
        inputs = []
        for source, picture in enumerate(pictures):
            pixels = self._frames(picture) if self.video else self._picture(picture)
            inputs.append(ImageInputs({"pixel_values": pixels}, {}, self.settings["rows"] * len(pixels), source))
        return inputs

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`; of one frame."""
        size, rows = self.settings["image_size"], self.settings["rows"]
        if not self.video:
            return square_extent(size, PATCH, rows)
        tall, wide = scaled_sides(height, width, size)
        matrices = (tall * height + wide * width) * FLOAT_BYTES
        before = width * height * PIXEL_BYTES  # a frame is normalised in its own size
        return Extent(tall * wide, (size // PATCH) ** 2, rows, before + matrices)

    def _picture(self, picture: np.ndarray) -> np.ndarray:
        if picture.ndim != 3:
            raise ImageError(f"a picture of {picture.ndim} axes", "(height, width, 3)", "use the video checkpoint for clips")
        size = self.settings["image_size"]
        return normalise(resize(picture, size, size), CLIP_MEAN, CLIP_STD)

    def _frames(self, clip: np.ndarray) -> np.ndarray:
        """Normalise, then scale the shortest side, then crop the centre; float32 (frames, 3, size, size)."""
        frames = clip[None] if clip.ndim == 3 else clip
        if len(frames) > self.settings["frames"]:
            raise UsageError(
                f"{len(frames)} frames", f"{self.settings['frames']} at most", "sample them (runtime_py.preprocess.frames)"
            )
        size = self.settings["image_size"]
        pixels = np.concatenate([normalise(frame, CLIP_MEAN, CLIP_STD) for frame in frames])
        return centre_crop(shortest_side_bilinear(pixels, size), size)

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        return self.prompt.encode(messages, {image.source: [self._placeholders(image.rows)] for image in images})

    def _placeholders(self, rows: int) -> list[int]:
        """Per frame its rows; with the video chat template also the frame's number as text behind it."""
        frame = [self._placeholder()] * self.settings["rows"]
        numbered = self.video and self.settings["template"] == "chat"
        places: list[int] = []
        for number in range(rows // self.settings["rows"]):
            places += frame + (self.prompt.text_ids(str(number)) if numbered else [])
        return places

    def _placeholder(self) -> int:
        return self.prompt.id(self.prompt.form.picture.row)

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = sum(piece.rows for piece in images)
        marked = ids[0] == self._placeholder() if images else np.zeros(ids.shape[1], dtype=bool)
        vision = marked & (np.cumsum(marked) <= rows)  # pictures come first; the same token in the text behind is text
        if int(vision.sum()) != rows:
            raise UsageError(f"{int(vision.sum())} placeholders in the prompt", f"{rows}", "rebuild the prompt")
        positions = shared_positions(vision)
        decoder: dict[str, np.ndarray] = {"position_ids": positions[None]}
        if self.settings["experts"]:
            decoder["vision_expert"] = routed_to_vision(vision)[None]
        state = {"tokens": ids.shape[1], "last": int(positions[-1])}
        return Layout(ids, vision, decoder, state, np.unique(ids))

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        position = layout.state["last"] + 1 + length - layout.state["tokens"]
        inputs: dict[str, np.ndarray] = {"position_ids": np.array([[position]], dtype=np.int64)}
        if self.settings["experts"]:
            inputs["vision_expert"] = np.zeros((1, 1), dtype=bool)
        return inputs

    def arrange(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The routing mask of one call to the rows of each expert and the way back."""
        if "vision_expert" not in inputs:
            return inputs
        mask = inputs["vision_expert"][0]
        language, vision = np.flatnonzero(~mask), np.flatnonzero(mask)
        order = np.argsort(np.concatenate([language, vision]), kind="stable")
        rest = {name: value for name, value in inputs.items() if name != "vision_expert"}
        return rest | {"language_index": language, "vision_index": vision, "restore_index": order}


def routed_to_vision(vision: np.ndarray) -> np.ndarray:
    """Tokens that the visual experts take: vision tokens followed by a vision token, so boi yes and eoi no."""
    following = np.append(vision[1:], False)
    return vision & following


def shared_positions(vision: np.ndarray) -> np.ndarray:
    """int64 positions: the inner tokens of a vision run share one; its first and last count like language."""
    before, after = np.insert(vision[:-1], 0, False), np.append(vision[1:], False)
    inner = vision & before & after
    starts_run = inner & ~np.insert(inner[:-1], 0, False)
    step = (~inner | starts_run).astype(np.int64)
    step[0] = 0
    return np.cumsum(step)
