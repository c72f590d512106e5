"""Peak memory of CogVLM2's vision encoder under ONNX Runtime, at full width and picture size but with few blocks.

    python -m parity_tests.laboratory.measure_vision_memory --blocks 2
    python -m parity_tests.laboratory.measure_vision_memory --blocks 1 --pixels 672 --attention plain

At 1344 px the tower has 9,217 rows and 16 heads: all scores of one layer would be 16 x 9217 x 9217 x 4 B = 5.4 GB. The graph
is the package's own, with random weights; it runs once in a process of its own, whose peak is read before and after.
With ``--attention plain`` the same tower multiplies, normalises and multiplies in three operators: the control that shows
what a score tensor looks like in these figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

if TYPE_CHECKING:
    from torch import Tensor

    from export.specs import ModelSpec

ATTENTION = ("package", "plain")

MODEL = "THUDM/cogvlm2-llama3-chat-19B"

RUN = """\
import json, sys, time
import numpy, onnxruntime
from runtime_py.memory import peak_resident_bytes
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
value = session.get_inputs()[0]
pixels = numpy.random.default_rng(0).standard_normal([1, *value.shape[1:]], dtype=numpy.float32)
loaded, began = peak_resident_bytes(), time.monotonic()
features = session.run(None, {value.name: pixels})[0]
found = {"loaded_bytes": loaded, "peak_bytes": peak_resident_bytes(), "seconds": round(time.monotonic() - began, 1)}
print(json.dumps({**found, "rows": features.shape[1], "finite": bool(numpy.isfinite(features).all())}))
"""


class RandomWeights:
    """A WeightProvider of normal numbers scaled so that activations stay finite; norms are one, biases zero."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def shape(self, target: str) -> tuple[int, ...]:
        return self.shapes[target]

    def tensor(self, target: str) -> Tensor:
        return self.rows(target, 0, None)

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        import torch

        shape = self.shapes[target]
        rows = (shape[0] if stop is None else stop) - start
        if len(shape) == 1:
            return torch.ones(rows) if target.endswith("weight") else torch.zeros(rows)
        seed = torch.Generator().manual_seed(zlib.crc32(f"{target} {start}".encode()))
        columns = torch.Size(shape[1:]).numel()
        return torch.randn((rows, *shape[1:]), generator=seed) * columns**-0.5


def tower(blocks: int, pixels: int) -> ModelSpec:
    """The published model with fewer vision blocks and another picture size."""
    from export.checkpoint.opened import describe_config
    from export.families.names import find
    from export.modules.vision.specs import VisionSpec

    known = find(MODEL)
    assert known is not None
    family = known.family
    spec = describe_config(family, family.published_config(MODEL, "full"))
    assert isinstance(spec.vision, VisionSpec), "the published model measured here has absolute positions"
    side = pixels // spec.vision.patch_size
    return replace(spec, vision=replace(spec.vision, layers=blocks, grid=(side, side), native_grid=side))


def write_tower(spec: ModelSpec, folder: Path, attention: str) -> Path:
    """The fp32 graph of the vision encoder with random weights; ``attention`` is one of `ATTENTION`."""
    from export.backends.base import BuildOptions
    from export.backends.onnx.backend import OnnxBackend
    from export.backends.onnx.choices import choices
    from export.backends.onnx.stage_graphs import stage_model
    from export.graphs.stage_values import StageWeights
    from export.graphs.writer import write_stage
    from export.modules.build import parameter_shapes
    from runtime_py.contracts import VISION
    from targets.registry import target_named

    target = target_named("cpu")
    options = BuildOptions(target, "fp32", target.limits, {})
    assignments = OnnxBackend().assignments(spec, options)
    weights = RandomWeights(parameter_shapes(spec))
    chosen = choices(options)
    model = (
        _plain_model(spec, chosen, assignments) if attention == "plain" else stage_model(spec, VISION, chosen, assignments)
    )
    source = StageWeights(VISION, weights, None, assignments)  # type: ignore[arg-type]  # fp32 has no codes
    return write_stage(model, source, folder / "vision_encoder.onnx", lambda done, of: None)[0]


def _plain_model(spec: ModelSpec, chosen: Any, assignments: Any) -> Any:
    """The package's graph but for its attention, which is written out."""
    import torch

    from export.backends.onnx.kernels import KernelChoices, OrtKernels
    from export.backends.onnx.operator_set import OPSET
    from export.graphs.trace import trace_stage
    from runtime_py.contracts import VISION

    class PlainAttention(OrtKernels):
        def full_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
            return torch.matmul(torch.softmax(scores, dim=-1), v)

    return trace_stage(spec, VISION, PlainAttention(assignments, KernelChoices()), opset=OPSET)


def measure(blocks: int, pixels: int, attention: str = "package") -> dict[str, object]:
    """Write the tower, run it once in a process of its own, and say what it took, in bytes and seconds."""
    spec = tower(blocks, pixels)
    with tempfile.TemporaryDirectory(prefix="edgeproof-tower-") as folder:
        graph = write_tower(spec, Path(folder), attention)
        done = subprocess.run([sys.executable, "-c", RUN, str(graph)], check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout)
        weights = sum(file.stat().st_size for file in Path(folder).iterdir())
    scores = spec.vision.heads * measured["rows"] ** 2 * 4
    return {
        "blocks": blocks,
        "pixels": pixels,
        "attention": attention,
        **measured,
        "weight_bytes": weights,
        "score_bytes": scores,
    }


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Peak memory of CogVLM2's vision encoder under ONNX Runtime, with few blocks: one JSON object.")
    made.add_argument("--blocks", type=int, default=2, help="vision blocks; published: 63")
    made.add_argument("--pixels", type=int, default=1344, help="side of the picture; published: 1344")
    made.add_argument("--attention", choices=ATTENTION, default=ATTENTION[0], help="plain: written out, as a control")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    console.out_json(measure(given.blocks, given.pixels, given.attention))
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.measure_vision_memory", arguments)


if __name__ == "__main__":
    sys.exit(main())
