"""OmniLMM-12B: squash to a square, image rows between <im_start> and <im_end>.

Source: OpenBMB/MiniCPM-V at 0dbb566d, omnilmm/model/utils.py (build_transform, omni_preprocess), chat.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Layout, Message, at_most_one
from runtime_py.preprocess.extent import Extent, square_extent
from runtime_py.preprocess.pixels import CLIP_MEAN, CLIP_STD, normalise, resize
from runtime_py.preprocess.prompted import CountingProcessor
from runtime_py.prompt.render import picture_text

PATCH = 14
"""Side of the tower's patches, which the settings do not hold."""


class Processor(CountingProcessor):
    """One picture a conversation, squashed to a square: one image, with a row of features for every query."""

    def images(self, pictures: Sequence[np.ndarray]) -> list[ImageInputs]:
        at_most_one(pictures, "one: the published code keeps only the last of several")
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

    def extent(self, width: int, height: int) -> Extent:
        """See `runtime_py.preprocess.extent.PredictsExtent`."""
        return square_extent(self.settings["image_size"], PATCH, self.settings["queries"])

    def encode(self, messages: Sequence[Message], images: Sequence[ImageInputs]) -> np.ndarray:
        return self.prompt.encode(messages, {image.source: [picture_text(self.prompt.form, image.rows)] for image in images})

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        ids = np.asarray(input_ids, dtype=np.int64)
        rows = np.zeros(ids.shape[1], dtype=bool)
        if images:
            starts = np.flatnonzero(ids[0] == self.prompt.id("<im_start>")) + 1
            if len(starts) != len(images):
                raise UsageError(
                    f"{len(starts)} <im_start> tokens for {len(images)} pictures", "one each", "rebuild the prompt"
                )
            for start, piece in zip(starts, images, strict=True):
                end = start + piece.rows
                if end >= ids.shape[1] or ids[0, end] != self.prompt.id("<im_end>"):
                    raise UsageError(
                        "no <im_end> after the image rows", f"{piece.rows} rows, then <im_end>", "rebuild the prompt"
                    )
                rows[start:end] = True
        return Layout(ids, rows, self.counted(ids.shape[1]))
