"""Awaker2.5-VL: Qwen2-VL's preprocessing, and the span of the prompt that the expert gates read.

Source: MetabrainAGI/Awaker at 08c4796, Awaker2.5-VL/transformers/src/transformers/models/qwen2_vl, README.md (prompt_pos).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from runtime_py.errors import UsageError
from runtime_py.preprocess import qwen2_vl
from runtime_py.preprocess.base import ImageInputs, Layout


class Processor(qwen2_vl.Processor):
    """See runtime_py.preprocess.base.Processor; ``settings`` come from export/families/awaker2_5_vl.

    Their ``routed`` is false in packages of Qwen2-VL made before it had a processor of its own.
    """

    def layout(self, input_ids: np.ndarray, images: Sequence[ImageInputs]) -> Layout:
        found = super().layout(input_ids, images)
        if not self.settings["routed"]:
            return found
        ids = found.input_ids[0]
        gates = {"span": self.gate_span(ids), "video": bool((ids == self.settings["video_pad"]).any())}
        return Layout(found.input_ids, found.image_rows, found.decoder, {**found.state, **gates})

    def gate_span(self, ids: np.ndarray) -> list[int]:
        """[start, end) of the first user turn's content: from the first image, or past the word "user", to its end."""
        ends, starts = np.flatnonzero(ids == self.settings["im_end"]), np.flatnonzero(ids == self.settings["im_start"])
        if len(ends) < 2 or len(starts) < 2:
            raise UsageError(
                "the prompt has no system turn followed by a user turn",
                "two <|im_end|> tokens: the expert gates read the first user turn",
                "keep the default system message in front",
            )
        images = np.flatnonzero(ids == self.settings["vision_start"])
        return [int(images[0]) if len(images) else int(starts[1]) + 2, int(ends[1])]

    def embedding_inputs(
        self, layout: Layout, merged: np.ndarray, raw: np.ndarray, phase: Literal["prefill", "decode"]
    ) -> dict[str, np.ndarray]:
        """The gate's input: with image rows in prefill, without them in decode; never with video rows."""
        if not self.settings["routed"]:
            return {}
        start, end = layout.state["span"]
        rows = merged if phase == "prefill" and not layout.state["video"] else raw
        return {"gate_input": rows[:, start:end].mean(axis=1, dtype=np.float32)}
