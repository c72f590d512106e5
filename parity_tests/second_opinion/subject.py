"""The checkpoint that is asked about: ours as it is opened for an export, and its files as they lie there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.samples.machine import photographs
from parity_tests.second_opinion.opinion import Disagreement, NotComparable
from runtime_py.memory import available_bytes
from runtime_py.preprocess.base import Processor
from runtime_py.preprocess.processors import make_processor
from runtime_py.prompt.format import prompt_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from export.checkpoint.opened import OpenedCheckpoint
    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec
    from parity_tests.reference.reference import TorchBackend

SHARE = 0.5
"""Of the free memory that both sides' weights may take; activations and what else runs have the rest."""

FLOAT_BYTES, SIDES = 4, 2

TOKENS = 24
"""Of the drawn prompt."""

_BLOCK = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")

NOT_OF_A_DECODER = (
    "model_type",
    "architectures",
    "auto_map",
    "torch_dtype",
    "dtype",
    "vision_config",
    "transformers_version",
)
"""Keys of config.json that a decoder's configuration class would take for something else."""


@dataclass(frozen=True)
class Subject:
    """One checkpoint, opened."""

    opened: OpenedCheckpoint

    @property
    def family(self) -> str:
        return self.opened.family.name

    @property
    def folder(self) -> Path:
        assert self.opened.folder is not None, "opened from a folder"
        return self.opened.folder

    @property
    def spec(self) -> ModelSpec:
        """Ours, never the other side's."""
        return self.opened.spec

    @property
    def weights(self) -> WeightProvider:
        assert self.opened.weights is not None, "opened with its weights"
        return self.opened.weights

    @cached_property
    def processor(self) -> Processor:
        return make_processor(self.opened.family.processor, self.spec.runtime, None)

    def document(self, name: str) -> dict[str, Any]:
        """A JSON file of the checkpoint, read by Python's own reader; empty where there is none."""
        path = self.folder / name
        return dict(json.loads(path.read_text(encoding="utf-8-sig"))) if path.is_file() else {}

    def names(self, prefix: str = "", blocks: int | None = None) -> Iterator[str]:
        """Published names of tensors that begin with ``prefix``, of the first ``blocks`` blocks alone."""
        assert self.opened.weights is not None
        for name in self.opened.weights.source.infos:
            block = _BLOCK.search(name)
            if name.startswith(prefix) and (blocks is None or block is None or int(block[1]) < blocks):
                yield name

    def shape(self, name: str) -> tuple[int, ...]:
        assert self.opened.weights is not None
        return tuple(self.opened.weights.source.infos[name].shape)

    def read(self, name: str) -> Tensor:
        """A tensor under its published name, float32."""
        assert self.opened.weights is not None
        return self.opened.weights.source.read(name).float()

    def blocks_that_fit(self, prefix: str, blocks: int) -> int:
        """How many of a stage's blocks both sides can hold in float32 here, all of them where they fit.

        A fault of a reader is the same in every block.

        Raises:
            NotComparable: not even one.
        """
        free = available_bytes()
        if free is None:
            return blocks
        sizes = {name: int(np.prod(self.shape(name), dtype=np.int64)) for name in self.names(prefix)}
        inside = sum(size for name, size in sizes.items() if _BLOCK.search(name))
        room = free * SHARE / (FLOAT_BYTES * SIDES) - (sum(sizes.values()) - inside)
        fitting = int(room / max(inside / blocks, 1))
        if fitting < 1:
            needed = (sum(sizes.values()) - inside + inside / blocks) * FLOAT_BYTES * SIDES / SHARE
            raise NotComparable(
                f"one block on both sides needs {needed / 1e9:.1f} GB of free memory, {free / 1e9:.1f} GB are"
            )
        return min(fitting, blocks)

    def backend(self, spec: ModelSpec | None = None, weights: WeightProvider | None = None) -> TorchBackend:
        """Our reference of the checkpoint, or of a part of it."""
        from parity_tests.reference.reference import TorchBackend

        return TorchBackend(spec or self.spec, weights or self.weights)

    def with_layers(self, layers: int) -> ModelSpec:
        """Our model with fewer layers of its decoder."""
        return replace(self.spec, decoder=replace(self.spec.decoder, layers=layers))

    def drawn_ids(self) -> np.ndarray:
        """int64 (1, TOKENS) ids of plain pieces, the same each time; no mark of a prompt is among them."""
        marks = set(prompt_of(self.spec.runtime).marks.values())
        free = np.array([token for token in range(min(self.spec.embed.vocabulary, 1 << 16)) if token not in marks])
        return np.random.default_rng(12).choice(free, TOKENS)[None].astype(np.int64)


PHOTOGRAPH = "photograph"
PHOTOGRAPHS, HEIGHT, WIDTH = 2, 320, 480
"""How many photographs of installed packages are asked about, and how much of each."""


def real_pictures() -> Mapping[str, np.ndarray]:
    """The same of the photographs that installed packages carry; {} where none does."""
    from PIL import Image

    taken = {}
    for path in photographs()[:PHOTOGRAPHS]:
        with Image.open(path) as picture:
            taken[f"{PHOTOGRAPH} {path.stem}"] = np.asarray(picture.convert("RGB"))[:HEIGHT, :WIDTH]
    return taken


def pictures() -> Mapping[str, np.ndarray]:
    """uint8 RGB pictures by name: wide, tall, small, of one colour, and what packages with photographs have."""
    draw = np.random.default_rng(31)
    rows, columns = np.mgrid[0:300, 0:460]
    wide = np.stack([rows * 255 // 300, columns * 255 // 460, (rows + columns) % 256], axis=-1).astype(np.uint8)
    return {
        "wide": wide,
        "tall": draw.integers(0, 256, (230, 90, 3), dtype=np.uint8),
        "small": draw.integers(0, 256, (57, 61, 3), dtype=np.uint8),
        "one colour": np.full((120, 120, 3), (200, 90, 30), np.uint8),
        **real_pictures(),
    }


def configured(make: Callable[[], Any], name: str) -> Any:
    """What a configuration class of transformers makes of a checkpoint's values.

    Raises:
        NotComparable: that class refuses them; it says which.
    """
    try:
        return make()
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        told = str(error).strip().splitlines()
        raise NotComparable(f"{name} refuses this configuration: {told[-1].strip() if told else error!r}") from error


def loaded(model: nn.Module, state: Mapping[str, Tensor], missing: tuple[str, ...] = ()) -> nn.Module:
    """A module of transformers with a checkpoint's tensors, float32, ready to be asked.

    Args:
        missing: beginnings of names that this comparison does without.

    Raises:
        Disagreement: names or shapes are not those that its configuration asks for.
    """
    try:
        report = model.float().load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise Disagreement(" ".join(str(error).split())[:400]) from error
    absent = [name for name in report.missing_keys if not name.startswith(missing or ("\0",))]
    if absent or report.unexpected_keys:
        raise Disagreement(f"tensors that it lacks: {absent[:3]}; that it has no place for: {report.unexpected_keys[:3]}")
    return model.eval()
