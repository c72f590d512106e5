"""What comes before the decoder: pictures through vision encoder and connector, ids through the embedding, both merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime_py.backends.base import Backend
from runtime_py.contracts import CONNECTOR, EMBED, VISION
from runtime_py.errors import PackageError, UsageError
from runtime_py.generation.limits import SessionLimits
from runtime_py.preprocess.base import ImageInputs, Layout, Processor

Recorder = Callable[[str, np.ndarray], None]
"""Receives (probe, array). Probes: ``pixel_values``, ``vision`` (unless the backend fuses it with the connector) and
``connector`` once per `ImageInputs` in order,
``inputs_embeds`` (1, tokens, hidden) once per merge, ``prefill_logits`` (1, outputs, vocabulary) once per prefill,
``step_logits`` (1, 1, vocabulary) once per step."""


class InputRows:
    """Pictures and ids of prompts as rows of the decoder's input; what `runtime_py.generation.session.Session` begins with.

    Args:
        recorder: receives every probe; None costs nothing.
    """

    def __init__(
        self, backend: Backend, processor: Processor, limits: SessionLimits, recorder: Recorder | None = None
    ) -> None:
        self.backend = backend
        self.processor = processor
        self.limits = limits
        self.recorder = recorder

    def encode_images(self, pictures: Sequence[np.ndarray]) -> tuple[list[ImageInputs], list[np.ndarray]]:
        """uint8 RGB (height, width, 3) pictures to encoder inputs and the features made of them."""
        images = self.processor.images(pictures)
        return images, self.features(images)

    def features(self, images: Sequence[ImageInputs]) -> list[np.ndarray]:
        """Run vision encoder and connector: one float32 (rows, hidden) per `ImageInputs`."""
        features = []
        for image in images:
            if "pixel_values" in image.vision:
                self._record("pixel_values", image.vision["pixel_values"])
            rows = self._image_rows(image)
            self._record("connector", rows)
            flat = rows.reshape(-1, rows.shape[-1])
            if len(flat) != image.rows:
                raise PackageError(
                    f"the connector gave {len(flat)} image rows for picture {image.source + 1}",
                    f"{image.rows} rows, as the prompt holds",
                    "export the package again; its connector and its processor settings disagree",
                )
            features.append(flat)
        return features

    def _image_rows(self, image: ImageInputs) -> np.ndarray:
        vision = self.backend.run(VISION, image.vision)["vision_features"]
        self._record("vision", vision)
        return self.backend.run(CONNECTOR, {"vision_features": vision, **image.connector})["image_features"]

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """int64 (1, tokens) ids to float32 (1, tokens, hidden), at most ``limits.prefill_chunk`` ids in one call."""
        ids = np.asarray(input_ids, dtype=np.int64)
        chunk = self.limits.prefill_chunk
        parts = [
            self.backend.run(EMBED, {"input_ids": ids[:, start : start + chunk]})["inputs_embeds"]
            for start in range(0, ids.shape[1], chunk)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def merge(self, layout: Layout, features: Sequence[np.ndarray]) -> np.ndarray:
        """Embed the prompt and put the image rows, in order, over their placeholders: float32 (1, tokens, hidden)."""
        given = sum(len(rows) for rows in features)
        wanted = int(layout.image_rows.sum())
        if given != wanted:
            raise UsageError(
                f"{given} rows of image features for a prompt with {wanted} placeholders",
                "as many rows as placeholders",
                "pass the pictures the prompt was made with",
            )
        embeds = np.array(self.embed(layout.input_ids), dtype=np.float32)
        if wanted:
            embeds[0, layout.image_rows] = np.concatenate(list(features))
        self._record("inputs_embeds", embeds)
        return embeds

    def _record(self, probe: str, array: np.ndarray) -> None:
        if self.recorder is not None:
            self.recorder(probe, array)
