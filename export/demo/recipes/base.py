"""What the trainer has to know about a family beyond its spec and weight map."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from export.specs import ModelSpec
from runtime_py.preprocess.base import ImageInputs
from runtime_py.preprocess.resample import sine_table

Tensors = dict[str, torch.Tensor]

SHAPES_ALONE: Mapping[str, float] = {
    "seeing": 250,
    "answering": 0,
    "again": 600,
    "again_rate": 0.4,
    "whole": 350,
    "positions": 0.15,
    "asked_pictures": 16,
    "prompts": 0.1,
    "strange": 0.05,
}
"""`Recipe.plan` of a demo that starts from a delivered one and learns about shapes alone, where nothing else is said."""


@dataclass(frozen=True)
class Places:
    """Where in the picture the rows of one picture's features lie.

    Attributes:
        vision: (rows of all its vision features, 2) middles as fractions (x, y) of the picture; NaN for a row with none.
        image: the same for its rows of image features.
    """

    vision: np.ndarray
    image: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """How the demo checkpoint of one family is made.

    Attributes:
        family: registry name.
        config: the checkpoint's config.json.
        side: pixels of the square that the family's processor makes of every picture.
        patches: rows and columns of the vision features.
        rows: rows and columns of the picture that the rows of image features stand for.
        fixed: published tensors that keep their initial values (tables that are resampled outside autograd).
        initialise: fills published tensors in place that the general rule would start badly.
        side_files: tokenizer and config files by name.
        stop: the token that ends an answer; the smallest stop id when None.
        before: text that stands directly in front of an answer and takes part in how its first word is cut into tokens.
        lead: text that an answer begins with and that is no part of what it says, e.g. a space.
        places: where the rows of a picture's features lie, where `patches` and `rows` do not tell.
        shape_of: from (width, height) what pictures of one batch must agree in, their number of image rows first; None when
            all pictures do.
        file_of: the file and the name in it that a tensor is stored under; model.safetensors and its own when None.
        known: shapes of published tensors that the family reads sizes from.
        digits: its pictures may hold a digit; without, it learns and is asked about shapes alone.
        start: stage to the family whose delivered demo it starts from
        (`parity_tests.laboratory.demo_training.transfer`); ``decoder`` with its tables.
        plan: values of `parity_tests.laboratory.demo_training.plan.Plan` that differ from its defaults.
    """

    family: str
    config: Mapping[str, Any]
    side: int
    patches: tuple[int, int]
    rows: tuple[int, int]
    fixed: tuple[str, ...]
    initialise: Callable[[Tensors, ModelSpec], None]
    side_files: Callable[[], dict[str, bytes]]
    stop: str | None = None
    before: str = ""
    lead: str = ""
    places: Callable[[ImageInputs, tuple[int, int]], Places] | None = None
    shape_of: Callable[[int, int], tuple[int, ...]] | None = None
    file_of: Callable[[str], tuple[str, str]] | None = None
    known: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    digits: bool = True
    start: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """What config.json, or the decoder's own part of it, says the weights are stored in."""
        language = self.config.get("text_config", {})
        dtype: torch.dtype = getattr(torch, self.config.get("torch_dtype") or language["torch_dtype"])
        return dtype


def grid_middles(rows: int, columns: int) -> np.ndarray:
    """(rows * columns, 2) middles (x, y) of a grid's cells, row by row, as fractions of the picture."""
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=1)


NOWHERE = np.full((1, 2), np.nan)
"""The place of a learned row."""


def json_files(documents: Mapping[str, Any]) -> dict[str, bytes]:
    """File name to an indented JSON document."""
    return {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in documents.items()}


def licence_file(model: str) -> dict[str, bytes]:
    """LICENSE of a folder whose weights were made here."""
    note = (
        "The weights and the tokenizer in this folder were made from drawn pictures by "
        "parity_tests/laboratory/demo_training/train.py.\n"
        f"They contain nothing of the published {model} weights.\n"
        "They are licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0\n"
    )
    return {"LICENSE": note.encode()}


def look_in_place(tensors: Tensors, resampler: str, side: int) -> None:
    """A resampler of ``side`` x ``side`` queries that look at their own part of the picture from the start.

    The stored table is smooth over most channels, so attention by position needs weight on the few channels whose sines
    turn within the grid. Those channels start free of picture content (their rows of kv_proj are zero), and the query and
    key projections start as a multiple of the identity there; training moves all of it.

    Args:
        resampler: what the names of its tensors begin with.
    """
    width = tensors[f"{resampler}query"].shape[-1]
    tensors[f"{resampler}pos_embed"].copy_(torch.from_numpy(sine_table(side, side, width)))
    quarter = width // 4
    channels = torch.tensor([q * quarter + k for q in range(4) for k in range(6)])
    projection = tensors[f"{resampler}attn.in_proj_weight"]
    for part in range(2):
        projection[part * width + channels] = 0.0
        projection[part * width + channels, channels] = 7.0
    tensors[f"{resampler}kv_proj.weight"][channels] = 0.0
    tensors[f"{resampler}query"].mul_(0.2)
    tensors[f"{resampler}query"][:, channels] = 0.0


def sine_positions(rows: int, columns: int, width: int, scale: float = 0.5) -> torch.Tensor:
    """(rows * columns, width) two-dimensional sine table."""
    table = sine_table(rows, columns, -(-width // 4) * 4)[:, :width]
    return scale * torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32))
