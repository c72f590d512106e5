"""Stage contracts: the names, dtypes and shapes at the border of every graph in a package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime_py.errors import PackageError

VISION = "vision_encoder"
CONNECTOR = "connector"
EMBED = "embed_tokens"
DECODER = "decoder"
STAGES = (VISION, CONNECTOR, EMBED, DECODER)

PASSED_ON = {
    VISION: ("pixel_values", "vision_features"),
    CONNECTOR: ("vision_features", "image_features"),
    EMBED: ("input_ids", "inputs_embeds"),
    DECODER: ("inputs_embeds", "logits"),
}
"""What every family's stage takes and gives, by which the pipeline passes it from one to the next."""

Dimension = int | str


@dataclass(frozen=True)
class TensorContract:
    """One tensor at a stage border.

    Attributes:
        name: the field's name for it, e.g. ``pixel_values``.
        dtype: a NumPy dtype name (``float32``, ``float16``, ``int64``, ``bool``).
        shape: sizes; a string is a dynamic axis with that name.
        required: False for an input with a default stored in the graph.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]
    required: bool = True

    def check(self, array: np.ndarray, stage: str) -> None:
        """Raise PackageError unless ``array`` has this dtype, rank and fixed sizes."""
        fits = array.dtype == np.dtype(self.dtype) and array.ndim == len(self.shape)
        fits = fits and all(isinstance(want, str) or want == got for want, got in zip(self.shape, array.shape, strict=True))
        if not fits:
            raise PackageError(
                f"stage {stage}: tensor '{self.name}' does not fit its contract",
                f"{self.dtype} {list(self.shape)}, found {array.dtype} {list(array.shape)}",
                "check the preprocessing settings in manifest.json, or export the package again",
            )


@dataclass(frozen=True)
class StageContract:
    """What goes into and comes out of one stage. Cache tensors of the decoder are listed like any other."""

    stage: str
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]

    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    def to_json(self) -> dict[str, Any]:
        def rows(tensors: tuple[TensorContract, ...]) -> list[dict[str, Any]]:
            return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "required": t.required} for t in tensors]

        return {"stage": self.stage, "inputs": rows(self.inputs), "outputs": rows(self.outputs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StageContract:
        def tensors(rows: list[Mapping[str, Any]]) -> tuple[TensorContract, ...]:
            return tuple(
                TensorContract(row["name"], row["dtype"], tuple(row["shape"]), row.get("required", True)) for row in rows
            )

        return cls(value["stage"], tensors(value["inputs"]), tensors(value["outputs"]))
