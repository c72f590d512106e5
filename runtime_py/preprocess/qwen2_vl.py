"""Qwen2-VL: patches of any grid, M-RoPE positions.

Source: transformers 4.45, models/qwen2_vl/{image_processing,processing,modeling}_qwen2_vl.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message
from runtime_py.preprocess.extent import Extent
from runtime_py.preprocess.patches import flatten_patches, rotary_angles, smart_resize
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise, resize
from runtime_py.preprocess.prompted import PromptedProcessor
from runtime_py.prompt.render import picture_text

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"


class Processor(PromptedProcessor):
    """Patches of any grid, and positions of three axes for everything in the prompt.

    A video is one picture of four axes: uint8 (frames, height, width, 3). The setting ``clip_pixels`` is there where its
    frames have other bounds than pictures.
    """

    reads_clips = True

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        return [self._inputs(picture, source) for source, picture in enumerate(pictures)]

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`; a picture stands for all frames of one slice of time."""
        tall, wide = self._size(height, width)
        patches, merge = tall * wide // self.settings["patch_size"] ** 2, self.settings["merge"]
        return Extent(tall * wide * self.settings["temporal_patch"], patches, patches // merge**2)

    def _size(self, height: int, width: int, clip: bool = False) -> tuple[int, int]:
        """(height, width) of the picture, or of a frame, that is cut into patches."""
        factor = self.settings["patch_size"] * self.settings["merge"]
        bounds = self.settings["min_pixels"], self.settings["max_pixels"]
        least, most = self.settings.get("clip_pixels", bounds) if clip else bounds
        return smart_resize(height, width, factor, least, most)

    def _inputs(self, picture: np.ndarray, source: int) -> ImageInputs:
        settings = self.settings
        frames = picture if picture.ndim == 4 else picture[None]
        temporal = settings["temporal_patch"]
        height, width = self._size(frames.shape[1], frames.shape[2], picture.ndim == 4)
        mean, deviation = settings.get("mean", CLIP_MEAN), settings.get("std", CLIP_STD)
        pixels = np.concatenate([normalise(resize(frame, width, height), mean, deviation) for frame in frames])
        missing = -len(pixels) % temporal
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        patches = flatten_patches(pixels, settings["patch_size"], settings["merge"], temporal)
        rows, columns = height // settings["patch_size"], width // settings["patch_size"]
        angles = rotary_angles(rows, columns, settings["merge"], settings["head_dim"])
        cells = patches.shape[0] * patches.shape[1] // settings["merge"] ** 2
        grid = np.array([len(patches), rows, columns, int(picture.ndim == 4)], dtype=np.int64)
        return ImageInputs({"pixel_values": patches, "rotary_angles": angles}, {}, cells, source, {"grid": grid})

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        form = self.prompt.form
        blocks = {piece.source: [picture_text(form, piece.rows, bool(piece.state["grid"][3]))] for piece in images}
        return self.prompt.encode(messages, blocks)

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        pads = [self.prompt.find(mark) for mark in (IMAGE_PAD, VIDEO_PAD)]
        marked = [ids[0] == (-1 if pad is None else pad) for pad in pads]
        image_rows = marked[0] | marked[1]
        placed = [int(rows.sum()) for rows in marked]
        given = [sum(piece.rows for piece in images if piece.state["grid"][3] == video) for video in (0, 1)]
        if placed != given:
            raise UsageError(
                f"{placed[0]} placeholders of pictures and {placed[1]} of clips in the prompt",
                f"{given[0]} and {given[1]}",
                "rebuild the prompt",
            )
        positions = multi_axis_positions(image_rows, [piece.state["grid"] for piece in images], self.settings["merge"])
        state: dict[str, Any] = {"next": int(positions.max()) + 1, "tokens": ids.shape[1]}
        return Layout(ids, image_rows, {"position_ids": positions[:, None]}, state, np.unique(ids))

    def next_inputs(self, layout: Layout, length: int) -> dict[str, np.ndarray]:
        position = layout.state["next"] + length - layout.state["tokens"]
        return {"position_ids": np.full((3, 1, 1), position, dtype=np.int64)}


def multi_axis_positions(image_rows: np.ndarray, grids: Sequence[np.ndarray], merge: int) -> np.ndarray:
    """int64 (3, tokens) time, row and column positions; text counts up on all three, a picture spans its grid."""
    positions = np.zeros((3, len(image_rows)), dtype=np.int64)
    index, following = 0, 0
    pictures = iter(grids)
    while index < len(image_rows):
        if not image_rows[index]:
            positions[:, index] = following
            index, following = index + 1, following + 1
            continue
        slices, rows, columns = (int(value) for value in next(pictures)[:3])
        shape = (slices, rows // merge, columns // merge)
        axes = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")).reshape(3, -1)
        positions[:, index : index + axes.shape[1]] = following + axes
        index, following = index + axes.shape[1], following + int(axes.max()) + 1
    return positions
