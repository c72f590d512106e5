"""A package of one checkpoint as the rungs need it: q4f32_1 weights, inputs, and a library per place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.backends.base import Build, BuildOptions
from export.backends.mlc.backend import MlcBackend as ExportMlc
from export.backends.mlc.backend import of_libraries
from export.backends.mlc.compile_process import compile_apart
from export.backends.mlc.package_parts import PackageParts
from export.checkpoint.opened import open_folder
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS
from export.stages import contracts
from parity_tests.check.package_questions import questions, stand_in
from parity_tests.laboratory.mlc_ladder.run_case import picked
from runtime_py import tokenizer as tokenizers
from runtime_py.backends.records import MLC
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.errors import PackageError
from runtime_py.preprocess.base import Processor, TokenizerLike
from targets.android import TARGET
from targets.base import Limits

LIMITS = Limits(context=256, prefill_chunk=64)
STEPS = 16
"""Positions that a prompt leaves free for the answer."""
LIBRARIES = {
    "host": ("x86_64", "host.so"),
    "opencl": ("pocl", "opencl.so"),
    "aarch64": ("aarch64_app", "aarch64.tar"),
    "arm64_host": ("aarch64", "arm64_host.tar"),
}
"""Mode of run_case to the place it is built for and the file's name; objects in a tar are linked by a linker for arm64."""


@dataclass(frozen=True)
class Case:
    """A prepared case folder and what made it."""

    folder: Path
    parts: PackageParts
    reference: DequantisedWeights

    def library(self, mode: str) -> Path:
        """The library of a mode, compiled when first asked for."""
        place, name = LIBRARIES[mode]
        path = self.folder / name
        if not path.exists():
            kernels = {}
            if mode == "host":
                kernels = {variant: self.folder / file for variant, file in self.parts.host_kernels.items()}
            for file in kernels.values():
                file.parent.mkdir(parents=True, exist_ok=True)
            compile_apart(self.parts.request(), place, path, kernels)
        return path


def make_case(checkpoint: Path, folder: Path, precision: str = "q4f32_1") -> Case:
    """Quantise the checkpoint into ``folder`` and write the inputs: a picture, its pieces and a prompt."""
    opened = open_folder(checkpoint)
    spec, weights = opened.spec, opened.weights
    assert weights is not None
    options = BuildOptions(TARGET, precision, LIMITS)
    assignments = ExportMlc().assignments(spec, options)
    codes = RoundToNearest(weights, assignments, GRIDS)
    bare = opened.family.make_processor(spec)
    build = Build(spec, options, assignments, weights, codes, opened, folder, lambda *_: None, bare)
    parts = PackageParts(build)
    for number in range(len(parts.shards)):
        parts.write_shard(number)
    parts.write_index()
    libraries = {mode: Path(name).with_suffix(".so").name for mode, (_, name) in LIBRARIES.items()}
    manifest = {
        "backends": {MLC.name: {**of_libraries(parts), "libraries": libraries}},
        "contracts": {name: contract.to_json() for name, contract in contracts(spec).items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    words = tokenizer_of(checkpoint, {**manifest, "runtime": spec.runtime, "generation": spec.generation})
    processor = opened.family.make_processor(spec, words)
    sent = parts.overview.sent
    assert sent is not None, "the ladder calls image_embed"
    np.savez(folder / "inputs.npz", allow_pickle=False, **case_inputs(checkpoint, processor, sent.image_size))
    return Case(folder, parts, DequantisedWeights(weights, codes, assignments, GRIDS))


def tokenizer_of(checkpoint: Path, manifest: Mapping[str, Any]) -> TokenizerLike:
    """The checkpoint's own tokenizer, or a stand-in where it has none."""
    try:
        return tokenizers.load(checkpoint)
    except PackageError:
        return stand_in(manifest)


def asked(checkpoint: Path, processor: Processor) -> tuple[np.ndarray, np.ndarray]:
    """(picture, input_ids): the golden inputs beside the checkpoint, or a drawn picture and a short question."""
    stored = checkpoint / "inputs.npz"
    if stored.is_file():
        with np.load(stored) as golden:
            return golden["image"], golden["input_ids"]
    question = questions(processor, 1, LIMITS.context, STEPS)[0]
    return question.pictures[0], question.input_ids


def case_inputs(checkpoint: Path, processor: Processor, square: int) -> dict[str, np.ndarray]:
    """Arrays of inputs.npz: the prompt, each piece of the picture, and a square of raw pixels."""
    picture, input_ids = asked(checkpoint, processor)
    pieces = processor.images([picture])
    layout = processor.layout(input_ids, pieces)
    inputs = {
        "input_ids": layout.input_ids,
        "image_rows": layout.image_rows,
        "pieces": np.array(len(pieces)),
        "square": np.resize(picture, (square, square, 3)),
    }
    for number, piece in enumerate(pieces):
        inputs |= {f"{VISION}.{number}.{name}": array for name, array in piece.vision.items()}
        inputs |= {f"{CONNECTOR}.{number}.{name}": array for name, array in piece.connector.items()}
    return inputs


__all__ = ["Case", "make_case", "picked"]
