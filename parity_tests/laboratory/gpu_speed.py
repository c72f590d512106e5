"""How fast a model's stages are on this GPU: PyTorch in float16, eager and compiled, and ONNX graphs of packages under CUDA.

    python -m parity_tests.laboratory.gpu_speed --reference CHECKPOINT [--package DIR]... [--json-file FILE]

``--device cpu`` rehearses the program where there is no GPU: float32, wall clock, no CUDA graphs.

==========================  ====================================================================================
PyTorch eager               the modules of the export with plain kernels, arrays on the GPU
PyTorch compiled            the same with every block compiled (``torch.compile``, one graph for all equal blocks)
..., CUDA graph             the same launches recorded once and replayed
a package's name            its ONNX graphs through `runtime_py.backends.ort`, arrays in and out of host memory
==========================  ====================================================================================

A call's floor is the longer of two times: the bytes it cannot do without (weights as stored, and the cache) over the rate
of a large copy, and the multiplications of its matrices over the rate of a large float16 product, both measured in the same
run. The share is the floor over the measured median. A decode step is timed at a fixed length; its keys and values are
appended by concatenation in PyTorch, and in place in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.laboratory.gpu_calls import Call, calls_of, weight_bytes
from parity_tests.laboratory.gpu_timing import (
    PLACES,
    Ceilings,
    Place,
    event_ms,
    measure_ceilings,
    median_ms,
    recorded,
    wall_ms,
)
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import DECODER
from runtime_py.errors import EdgeproofError, MachineError

if TYPE_CHECKING:
    from parity_tests.reference.checkpoint_side import Checkpoint
    from runtime_py.backends.ort import OrtBackend

GRAPH = ", CUDA graph"


@dataclass(frozen=True)
class Figure:
    """One call on one runner; ``share`` is the floor over the median, ``cosine`` the agreement with PyTorch eager."""

    runner: str
    call: str
    median_ms: float | None
    floor_ms: float | None = None
    share: float | None = None
    cosine: float | None = None
    remark: str = ""


def torch_figures(
    place: Place, checkpoint: Checkpoint, calls: Sequence[Call], ceilings: Ceilings, compiled: bool
) -> Iterator[Figure]:
    """Every call eager, then compiled if asked for, both also as CUDA graphs; `Call.expected` becomes the eager output."""
    import torch

    from parity_tests.reference.reference import TorchBackend

    dtype = getattr(torch, place.dtype)
    backend = TorchBackend(checkpoint.spec, checkpoint.weights, dtype, place.device)
    for stage in dict.fromkeys(call.stage for call in calls):
        module = backend.build(stage).eval()
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        for way in ("eager", "compiled")[: 1 + compiled]:
            if way == "compiled":
                _compile_blocks(module)
            for call in (call for call in calls if call.stage == stage):
                inputs = call.on_device(dtype, place.device)
                run = partial(_first_output, module, inputs)
                yield from _both_ways(place, f"PyTorch {way} {place.dtype}", call, run, size, ceilings)
                inputs.clear()
        del module, run
        gc.collect()
        torch.cuda.empty_cache()


def _both_ways(
    place: Place, runner: str, call: Call, run: Callable[[], Any], size: int, ceilings: Ceilings
) -> Iterator[Figure]:
    """A call launched operation by operation, and on a GPU also as one recorded graph."""
    import torch

    try:
        with torch.no_grad():
            actual = run().float().cpu().numpy()
            if call.expected is None:
                call.expected = actual
            yield _figure(runner, call, median_ms(place, run), size, ceilings, actual)
            if place.device == "cuda":
                replay, output = recorded(run)
                taken = event_ms(replay)
                yield _figure(runner + GRAPH, call, taken, size, ceilings, output.float().cpu().numpy())
    except Exception as error:  # a runner that breaks is a row, not the end of the others
        yield Figure(runner, call.name, None, remark=f"not run: {type(error).__name__}: {str(error).splitlines()[0]}")


def _first_output(module: Any, inputs: dict[str, Any]) -> Any:
    output = module(**inputs)
    return output[0] if isinstance(output, tuple) else output


def _compile_blocks(module: Any) -> None:
    """Compile the members of every module list; equal members share one compilation a shape."""
    import torch
    from torch import nn

    # Past the limit PyTorch would go on without compiling, and the figure would be another than its name says.
    torch._dynamo.config.fail_on_recompile_limit_hit = True

    for child in module.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            block.compile(dynamic=False)


def package_figures(place: Place, folder: Path, calls: Sequence[Call], ceilings: Ceilings) -> Iterator[Figure]:
    """Every call through a package's ONNX graphs on the place's provider."""
    from runtime_py import package as packages
    from runtime_py.backends.ort import OrtBackend

    package = packages.read(folder)
    name = f"{folder.resolve().name}, {place.provider}"
    backend = OrtBackend(package.folder, package.manifest, (place.provider,))
    for call in calls:
        try:
            if call.stage == DECODER:
                taken, said = _decoder_call(backend, call)
            else:
                said = next(iter(backend.run(call.stage, call.inputs).values()))
                taken = wall_ms(partial(backend.run, call.stage, call.inputs))
        except EdgeproofError as error:
            yield Figure(name, call.name, None, remark=f"not run: {error.what}")
            continue
        yield _figure(name, call, taken, weight_bytes(package, call.stage), ceilings, said)
    backend.close()


def _decoder_call(backend: OrtBackend, call: Call) -> tuple[float, np.ndarray]:
    """Milliseconds and logits of a prefill, or of a step after ``call.past`` positions."""
    last = np.array([-1], np.int64)
    state = backend.start(call.past + call.tokens)
    if call.past:
        backend.forward(state, call.before, last)

    def run() -> np.ndarray:
        backend.rewind(state, call.past)
        return backend.forward(state, call.inputs, last)

    return wall_ms(run), run()


def _figure(runner: str, call: Call, taken: float, weights: int, ceilings: Ceilings, actual: np.ndarray | None) -> Figure:
    seconds = (weights + call.cache_bytes) / ceilings.bytes_per_second
    floor = 1000 * max(seconds, call.operations / ceilings.operations_per_second)
    return Figure(runner, call.name, taken, floor, floor / taken, _cosine(call.expected, actual))


def _cosine(expected: np.ndarray | None, actual: np.ndarray | None) -> float | None:
    if expected is None or actual is None:
        return None
    a, b = (np.asarray(array, np.float64).ravel() for array in (expected, actual))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table, call by call."""

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = ["| call | runner | median ms | floor ms | share | cosine | remark |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(figure.call for figure in figures):
        for figure in (figure for figure in figures if figure.call == name):
            cells = (
                shown(figure.median_ms, ".3f"),
                shown(figure.floor_ms, ".3f"),
                shown(figure.share, ".2f"),
                shown(figure.cosine, ".6f"),
                figure.remark.replace("|", "/"),
            )
            lines.append(f"| {name} | {figure.runner} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Print the ceilings and a table; with --json-file also write both.")
    made.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a checkpoint")
    made.add_argument(
        "-p", "--package", type=Path, action="append", default=[], metavar="DIR", help="with ONNX graphs; repeatable"
    )
    made.add_argument("--prefill", type=int, default=512, metavar="N", help="tokens of the prompt")
    made.add_argument("--contexts", default="64,1024", metavar="LIST", help="lengths at which a step is timed")
    made.add_argument("--without-torch", action="store_true", help="packages alone")
    made.add_argument("--without-compiled", action="store_true", help="leave torch.compile out")
    made.add_argument("--device", default="cuda", choices=tuple(PLACES), help="cpu rehearses the program")
    flags.json_file(made, "write everything here")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    import torch

    from parity_tests.gpu_check import device_facts
    from parity_tests.reference.checkpoint_side import open_checkpoint

    place = PLACES[given.device]
    facts = {"device": "processor", "torch": torch.__version__}
    if place.device == "cuda":
        if not torch.cuda.is_available():
            raise MachineError("no CUDA device", "a GPU that PyTorch can use", "run this where there is one")
        facts |= {"device": torch.cuda.get_device_name(0), **device_facts()}
    checkpoint = open_checkpoint(given.reference)
    contexts = tuple(int(length) for length in given.contexts.split(","))
    calls = calls_of(checkpoint, given.prefill, contexts, getattr(torch, place.dtype), place.device)
    ceilings = measure_ceilings(place)
    sys.stdout.write(f"{facts}\ncopy {ceilings.bytes_per_second / 1e12:.3f} TB/s read and written, ")
    sys.stdout.write(f"{place.dtype} product {ceilings.operations_per_second / 1e12:.3f} TFLOP/s\n")
    figures: list[Figure] = []
    if not given.without_torch:
        figures += torch_figures(place, checkpoint, calls, ceilings, not given.without_compiled)
    for package in given.package:
        figures += package_figures(place, package, calls, ceilings)
    if given.json_file is not None:
        value = {"facts": facts, "ceilings": asdict(ceilings), "figures": [asdict(figure) for figure in figures]}
        given.json_file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(figures))
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.gpu_speed", arguments)


if __name__ == "__main__":
    sys.exit(main())
