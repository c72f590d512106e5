"""What the roundings of a vision tower do to what it says, in PyTorch; with ``--library`` in a package's own code too.

    python -m parity_tests.laboratory.observe_tower --pictures 40 [--library] [--model NAME_OR_FOLDER]... [--choice FILE]

Every demo checkpoint's tower, trained, reads held-out pictures in float32; with its matrices rounded to 8 bits; with its
inputs rounded as well, a scale a token, in 7 bits, up to the first block 14, as `export.backends.onnx.int8_linear` does; the
same with the sixteen-bit sums of an x86 processor without VNNI; in 7 bits throughout; a scale a call (packages of before);
and with some layers in the finer forms of a choice (`calibrate vision`).
Printed are the worst and the mean cosine of a token with float32 and the largest difference as a share of a picture's
largest value; and then, layer by layer, the same when inputs of this layer alone are rounded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from export.backends.onnx.choices import rounds_finely
from export.backends.onnx.int8_linear import ACTIVATED, ACTIVATED_ZERO, ZERO
from export.backends.onnx.record import TOKEN_GRID
from export.backends.onnx.token_rounding import finely, rounding_of, token, token_codes
from export.modules.build import layer_shapes
from export.modules.kernels import Kernels, Linear, Role
from export.pipeline import export
from export.quantisation.choice import read_choice, widened
from export.quantisation.codes import DequantisedWeights, RoundToNearest
from export.quantisation.grids import GRIDS
from export.quantisation.spec import Assignment, Storage
from export.request import ExportRequest
from export.source.hub import DEMO_FOLDER
from parity_tests.judging.metrics import row_cosines
from parity_tests.laboratory.observe_rounding import questions
from parity_tests.reference.arithmetic import Arithmetic, RoundedLinear
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint
from parity_tests.reference.reference import TorchBackend
from parity_tests.reference.roundings import Rounding, uint8_call
from runtime_py import tokenizer as tokenizers
from runtime_py.backends.base import Backend
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import ONNX
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import VISION
from runtime_py.errors import MachineError, UnsupportedModelError
from runtime_py.package import read
from runtime_py.preprocess.base import Processor

SIXTEEN = 32767


class SixteenBitLinear(Linear):
    """The product of bytes where two neighbouring products are added in sixteen bits that hold at their ends."""

    def __init__(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> None:
        super().__init__(in_features, out_features, bias, role)
        self.zero = ACTIVATED_ZERO if name.endswith(ACTIVATED) else ZERO

    def forward(self, x: Tensor) -> Tensor:
        grid = GRIDS[TOKEN_GRID]
        stored = grid.quantise(self.weight)
        weights, (codes, scale) = stored.codes.float() - 128, token_codes(x, self.zero)
        correction = self.zero * weights.sum(1)
        pad = x.shape[-1] % 2
        even, odd = (nn.functional.pad(codes, (0, pad))[..., i::2] for i in (0, 1))
        left, right = (nn.functional.pad(weights, (0, pad))[:, i::2] for i in (0, 1))
        rows = [(even * left[i] + odd * right[i]).clamp(-SIXTEEN - 1, SIXTEEN).sum(-1) for i in range(weights.shape[0])]
        y = (torch.stack(rows, -1) - correction) * stored.scales[:, 0] * scale
        return y if self.bias is None else y + self.bias


class TowerKernels(Kernels):
    """Plain kernels, but for the layers named."""

    def __init__(self, roundings: Mapping[str, Rounding], sixteen: bool = False) -> None:
        self.roundings, self.sixteen = roundings, sixteen

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        if name not in self.roundings:
            return super().linear(name, in_features, out_features, bias, role)
        if self.sixteen and not rounds_finely(name):
            return SixteenBitLinear(name, in_features, out_features, bias, role)
        return RoundedLinear(in_features, out_features, bias, role, self.roundings[name])


class TowerBackend(TorchBackend):
    """The reference with `TowerKernels`."""

    made = TowerKernels({})

    def kernels(self) -> Kernels:
        return self.made


def sides(checkpoint: Checkpoint, each: bool, choice: Path | None = None) -> dict[str, TorchBackend]:
    """Every way of rounding by name; with ``each``, one more for every layer of the tower."""
    spec = checkpoint.spec
    layers = [layer for layer in layer_shapes(spec) if layer.name.startswith(f"{VISION}.")]
    assignments = {layer.name: Assignment(layer, Storage.INT8, TOKEN_GRID) for layer in layers}
    codes = RoundToNearest(checkpoint.weights, assignments, GRIDS)
    eight = DequantisedWeights(checkpoint.weights, codes, assignments, GRIDS)

    def rounded(roundings: Mapping[str, Rounding], sixteen: bool = False) -> TorchBackend:
        backend = TowerBackend(spec, eight)
        backend.made = TowerKernels(roundings, sixteen)
        return backend

    tokens = {layer.name: token(layer.name) for layer in layers}
    shipped = {name: finely(name) if rounds_finely(name) else rounding for name, rounding in tokens.items()}
    made = {
        "8-bit matrices": rounded({}),
        "and a scale a token": rounded(shipped),
        "the same, sums of sixteen bits": rounded(shipped, sixteen=True),
        "the first block in 7 bits too": rounded(tokens),
        "and a scale a call": rounded({name: uint8_call for name in tokens}),
    }
    alone = {name: rounded({name: rounding}) for name, rounding in tokens.items()} if each else {}
    return made | alone | ({} if choice is None else {"with the choice": with_choice(checkpoint, assignments, choice)})


def with_choice(checkpoint: Checkpoint, planned: Mapping[str, Assignment], choice: Path) -> TorchBackend:
    """The tower of a package that was made with a choice."""
    assignments = widened(ONNX.name, planned, read_choice(choice)["backends"][ONNX.name])
    codes = RoundToNearest(checkpoint.weights, assignments, GRIDS)
    stored = DequantisedWeights(checkpoint.weights, codes, assignments, GRIDS)
    halves = frozenset(name for name, assignment in assignments.items() if not assignment.grid)
    grids = {name: assignment.grid for name, assignment in assignments.items() if assignment.grid}
    backend = TowerBackend(checkpoint.spec, stored, arithmetic=Arithmetic(half_weights=halves))
    backend.made = TowerKernels({name: rounding_of(name, grid) for name, grid in grids.items()})
    return backend


def packaged(checkpoint: Path, package: Path, choice: Path | None = None) -> dict[str, Backend]:
    """A cpu package's graph and its vision library; none where the tower cannot be compiled.

    Raises:
        MachineError: the library does not run here.
    """
    options = {"vision_library": True}
    request = ExportRequest(str(checkpoint), "cpu", output=package, skip_verify=True, options=options, choice=choice)
    try:
        export(request, None)
    except UnsupportedModelError as error:
        console.out(f"{checkpoint.name}: {error.what}")
        return {}
    given = read(package)
    graph, library = (OrtBackend(given.folder, given.manifest, own_code=own) for own in (False, True))
    if library.vision is None:
        raise MachineError(library.vision_missing, "a processor that runs it", "leave --library out")
    return {"its graph": graph, "its vision library": library}


def observe(
    folder: Path, pictures: int, each: bool, library: bool, choice: Path | None = None
) -> dict[str, tuple[float, float, float]]:
    """Worst and mean cosine of a token, and the largest relative difference, by side."""
    checkpoint = open_checkpoint(folder)
    processor = checkpoint.processor(tokenizers.load(folder))
    with tempfile.TemporaryDirectory() as name:
        others: dict[str, Backend] = {**sides(checkpoint, each, choice)}
        others |= packaged(folder, Path(name) / "package", choice) if library else {}
        return compared(checkpoint, processor, pictures, others)


def compared(
    checkpoint: Checkpoint, processor: Processor, pictures: int, others: Mapping[str, Backend]
) -> dict[str, tuple[float, float, float]]:
    """`observe` of these sides."""
    reference = TorchBackend(checkpoint.spec, checkpoint.weights)
    taken: dict[str, list[np.ndarray]] = {name: [] for name in others}
    largest = dict.fromkeys(others, 0.0)
    for question in questions(checkpoint, pictures):
        for image in processor.images(question.pictures):
            expected = reference.run(VISION, image.vision)["vision_features"]
            for name, side in others.items():
                features = side.run(VISION, image.vision)["vision_features"]
                taken[name].append(row_cosines(expected, features))
                largest[name] = max(largest[name], float(abs(features - expected).max() / abs(expected).max()))
    joined = {name: np.concatenate(values) for name, values in taken.items()}
    return {name: (float(values.min()), float(values.mean()), largest[name]) for name, values in joined.items()}


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What rounding does to the vision towers of the trained demos.")
    made.add_argument("--pictures", type=int, default=40, help="held-out pictures of each checkpoint (default 40)")
    made.add_argument("--model", action="append", help="a demo checkpoint, or a checkpoint's folder; default: all demos")
    made.add_argument("--library", action="store_true", help="also the graph and the vision library of a package")
    made.add_argument("--each", action="store_true", help="also every layer alone")
    made.add_argument("--choice", type=Path, metavar="FILE", help="also with the layers that calibrate vision chose")
    flags.talk(made)
    return made


def _run(arguments: argparse.Namespace) -> int:
    models = arguments.model or sorted(path.name for path in DEMO_FOLDER.iterdir() if path.is_dir())
    console.out("| checkpoint | rounded | worst cosine | mean cosine | largest difference |\n|---|---|---|---|---|")
    for model in models:
        folder = DEMO_FOLDER / model if (DEMO_FOLDER / model).is_dir() else Path(model).resolve()
        found = observe(folder, arguments.pictures, arguments.each, arguments.library, arguments.choice)
        for name, (worst, mean, largest) in found.items():
            console.out(f"| {folder.name} | {name} | {worst:.6f} | {mean:.6f} | {largest:.4f} |")
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.observe_tower", arguments)


if __name__ == "__main__":
    sys.exit(main())
