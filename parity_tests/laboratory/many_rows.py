"""What a package's second decoder is worth: its calls beside the first one's, and how far what it says is from float32.

    python -m parity_tests.laboratory.many_rows --package PACKAGE [--threads 1] [--operators]
    python -m parity_tests.laboratory.many_rows --package PACKAGE --checkpoint FOLDER [--text FILE] [--roundings]

The first line prints the time of a step of several sequences and of a prompt through either decoder, in turns, or
what both of these are made of in the second one (``--operators``). The second one reads a text, each window of it
from nothing, through both and through the checkpoint in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.backends.onnx.record import ROTATED_GRID
from export.modules.kernels import Kernels, Role
from export.quantisation.codes import DequantisedWeights, RoundToNearest, WeightProvider
from export.quantisation.grid_rotated import RotatedGrid
from export.quantisation.grids import GRIDS
from export.quantisation.hadamard import turned
from export.specs import ModelSpec
from parity_tests.backends.examiner import MANY_ROWS
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.laboratory.text_distance import DistanceTable, log_probabilities, reading_flags, windows_of
from parity_tests.laboratory.turns import in_turns
from parity_tests.reference.arithmetic import RoundedLinear
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, stored_reference
from parity_tests.reference.reference import TorchBackend
from runtime_py.backends.ort_decoder import DecoderCalls
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

SEQUENCES = (1, 2, 3, 4, 6, 8, 16)
PROMPTS = (96, 512)
FILLED = 150
"""Positions behind which a step is timed."""
PROFILED = ((f"a step of 8 behind {FILLED} positions", 8, 1), ("a prompt of 96 tokens", 1, 96))
"""The calls that are taken apart: a name, sequences, and tokens of each."""
ROUNDS, PROMPT_ROUNDS = 7, 3
STEPS = (63, 79, 95, 111, 127)
"""Of turned inputs either way."""
FIRST, SECOND = "first", "second"


def step_seconds(decoders: dict[str, Any], hidden: int) -> dict[tuple[str, int], float]:
    """Medians of a step by decoder and sequences, behind `FILLED` positions each; in turns."""
    drawn = np.random.default_rng(0)
    prompt = drawn.standard_normal((1, FILLED, hidden)).astype(np.float32)
    states = {name: filled(backend, prompt) for name, backend in decoders.items()}
    token = drawn.standard_normal((1, 1, hidden)).astype(np.float32)

    def step(name: str, count: int) -> Callable[[], object]:
        backend, together = decoders[name], states[name][:count]
        fed = [{"inputs_embeds": token, "position_ids": positions(backend, FILLED, 1)}] * count

        def run() -> None:
            for state in states[name]:
                state.length = FILLED
            backend.forward_batch(together, fed)

        return run

    return in_turns({(name, count): step(name, count) for count in SEQUENCES for name in decoders}, ROUNDS)


def filled(backend: Any, prompt: np.ndarray) -> list[Any]:
    """Sequences behind one prompt, each with a cache of its own: memory that was never written to is read in no time."""
    first, *others = backend.start_batch(max(SEQUENCES), prompt.shape[1] + 8)
    backend.read(first, {"inputs_embeds": prompt, "position_ids": positions(backend, 0, prompt.shape[1])}, np.array([-1]))
    for state in others:
        backend.copy_prefix(first, state, prompt.shape[1])
    return [first, *others]


def prompt_seconds(decoders: dict[str, Any], hidden: int) -> dict[tuple[str, int], float]:
    """Medians of a prompt in one call by decoder and tokens; in turns."""
    drawn = np.random.default_rng(0)
    states = {name: backend.start(max(PROMPTS)) for name, backend in decoders.items()}

    def prompt(name: str, count: int) -> Callable[[], object]:
        backend, embeds = decoders[name], drawn.standard_normal((1, count, hidden)).astype(np.float32)
        fed = {"inputs_embeds": embeds, "position_ids": positions(backend, 0, count)}

        def run() -> None:
            backend.rewind(states[name], 0)
            backend.forward(states[name], fed, np.array([-1]))

        return run

    return in_turns({(name, count): prompt(name, count) for count in PROMPTS for name in decoders}, PROMPT_ROUNDS)


def hidden_of(backend: Any) -> int:
    """Width of an embedded token."""
    return int(next(t.shape[-1] for t in backend.contracts["decoder"].inputs if t.name == "inputs_embeds"))


def positions(backend: Any, start: int, count: int) -> np.ndarray:
    """Position ids of consecutive tokens of text, in the shape that the contract says."""
    (tensor,) = (each for each in backend.contracts["decoder"].inputs if each.name == "position_ids")
    ids = np.arange(start, start + count)[None]
    return np.repeat(ids[None], tensor.shape[0], 0) if len(tensor.shape) == 3 else ids


def operator_milliseconds(backend: Any, hidden: int, threads: int, sequences: int, tokens: int) -> dict[str, float]:
    """Of a call, by operator, as ONNX Runtime's profile adds them up: tokens of sequences behind `FILLED` positions each, or
    of a prompt from nothing where there is one sequence.
    """
    import onnxruntime

    drawn, past = np.random.default_rng(0), FILLED if sequences > 1 else 0
    states = filled(backend, drawn.standard_normal((1, FILLED, hidden)).astype(np.float32))
    feeds: dict[str, np.ndarray] = {
        "inputs_embeds": drawn.standard_normal((sequences, tokens, hidden)).astype(np.float32),
        "attention_mask": np.ones((sequences, past + tokens), np.int64),
        "position_ids": np.concatenate([positions(backend, past, tokens)] * sequences, axis=-2),
        "num_logits_to_keep": np.array(1, np.int64),
    }
    (width,) = (t.shape[-1] for t in backend.contracts["decoder"].outputs if t.name == "logits")
    with tempfile.TemporaryDirectory(prefix="edgeproof-many-rows-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling, options.profile_file_prefix = threads, True, f"{folder}/p"
        session = onnxruntime.InferenceSession(backend.folder / backend.files["decoder"], options)
        calls = DecoderCalls(session, onnxruntime.OrtValue.ortvalue_from_numpy, width)
        for _ in range(ROUNDS + 1):
            calls(feeds, (sequences, 1), states[0].pool.values(0, sequences))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    began = sorted(event["ts"] for event in events if event["name"] == "model_run")[1]  # the first run takes memory
    spent: dict[str, float] = {}
    for event in events:
        if event["ts"] >= began and event["name"].endswith("_kernel_time"):
            name = event["args"]["op_name"]
            spent[name] = spent.get(name, 0.0) + event["dur"] / 1e3 / ROUNDS
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


class RoundedInputs(Kernels):
    """Plain kernels whose layers of the decoder round their input.

    Args:
        steps: either way, with one scale a row.
        turn: rows before they are rounded, and back.
    """

    def __init__(self, steps: int, turn: bool) -> None:
        self.steps, self.turn = steps, turn

    def linear(self, name: str, in_features: int, out_features: int, bias: bool, role: Role) -> nn.Module:
        if not name.startswith("decoder."):
            return super().linear(name, in_features, out_features, bias, role)
        return RoundedLinear(in_features, out_features, bias, role, self.rounded)

    def rounded(self, x: Tensor) -> Tensor:
        """Rows (..., columns) as they come back from their codes."""
        rows = x.flatten(0, -2)
        rows = turned(rows) if self.turn else rows
        scale = (rows.abs().amax(-1, keepdim=True) / self.steps).clamp(min=1e-30)
        read = torch.round(rows / scale) * scale
        return (turned(read) if self.turn else read).view(x.shape)


class RoundedInputsBackend(TorchBackend):
    """The reference with `RoundedInputs`."""

    def __init__(self, spec: ModelSpec, weights: WeightProvider, steps: int, turn: bool) -> None:
        super().__init__(spec, weights)
        self.steps, self.turn = steps, turn

    def kernels(self) -> Kernels:
        return RoundedInputs(self.steps, self.turn)


def others(checkpoint: Checkpoint, second: Candidate, wanted: bool) -> dict[str, TorchBackend]:
    """What the second decoder's numbers give in float32, and what matrices and inputs rounded in other ways do."""
    own = second.examiner.own_numbers(second, checkpoint)
    made = {"the second one's codes, computed in float32": TorchBackend(checkpoint.spec, own)}
    if not wanted:
        return made
    assert isinstance(own, DequantisedWeights)
    made["the same, inputs in 63 steps either way, not turned"] = RoundedInputsBackend(checkpoint.spec, own, 63, False)
    for steps in STEPS:
        grid = GRIDS[ROTATED_GRID]
        assert isinstance(grid, RotatedGrid)
        grids = {ROTATED_GRID: replace(grid, steps=steps)}
        codes = RoundToNearest(own.weights, own.assignments, grids)
        weights = DequantisedWeights(own.weights, codes, own.assignments, grids)
        name = f"inputs in {steps} steps either way, and matrices for them"
        made[name] = RoundedInputsBackend(checkpoint.spec, weights, steps, True)
    return made


def tell_distances(given: argparse.Namespace, sides: dict[str, Candidate]) -> None:
    """The table of distances."""
    checkpoint = open_checkpoint(given.checkpoint)
    windows = windows_of(given)
    stored = stored_reference(checkpoint, sides[FIRST])
    assert stored is not None
    full = log_probabilities(TorchBackend(checkpoint.spec, checkpoint.weights), sides[FIRST], windows)
    codes = log_probabilities(stored, sides[FIRST], windows)
    table = DistanceTable(windows, full, codes, "the first one's codes")
    table.row("codes, computed in float32", codes)
    for name, backend in others(checkpoint, sides[SECOND], given.roundings).items():
        table.row(name, log_probabilities(backend, sides[FIRST], windows))
    for name, side in sides.items():
        table.row(f"{name} decoder", log_probabilities(side.backend, side, windows))
        side.release()


def tell_times(sides: dict[str, Candidate]) -> None:
    """Both tables of times, milliseconds and tokens a second."""
    decoders = {name: side.backend for name, side in sides.items()}
    hidden = hidden_of(decoders[FIRST])
    steps, prompts = step_seconds(decoders, hidden), prompt_seconds(decoders, hidden)
    console.out("| step of sequences, ms | " + " | ".join(map(str, SEQUENCES)) + " |")
    console.out("|---" * (1 + len(SEQUENCES)) + "|")
    for name in decoders:
        console.out(f"| {name} decoder | " + " | ".join(f"{1e3 * steps[name, count]:.1f}" for count in SEQUENCES) + " |")
    console.out("| prompt of tokens, tokens/s | " + " | ".join(map(str, PROMPTS)) + " |")
    console.out("|---" * (1 + len(PROMPTS)) + "|")
    for name in decoders:
        console.out(f"| {name} decoder | " + " | ".join(f"{count / prompts[name, count]:.0f}" for count in PROMPTS) + " |")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "A package's decoder for calls of many rows beside its first one.")
    reading_flags(made, "exported with --prefill-precision", "tell distances; ", required=False)
    made.add_argument("--roundings", action="store_true", help="tell other roundings of inputs too, in PyTorch")
    made.add_argument("--operators", action="store_true", help="tell what a step of eight and a prompt are made of instead")
    made.add_argument("--threads", type=int, default=1, metavar="N", help="computing threads; default 1")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    whole = open_candidate(given.package, trust=True)
    first, others = whole.examiner.decoders(whole)
    second = others.get(MANY_ROWS)
    if second is None:
        raise UsageError(f"{given.package} has one decoder", "one of --prefill-precision int8", "export it so")
    for side in (first, second):
        side.backend.threads = given.threads  # type: ignore[attr-defined]
    sides = {FIRST: first, SECOND: second}
    if given.operators:
        decoder: Any = second.backend
        for name, sequences, tokens in PROFILED:
            spent = operator_milliseconds(decoder, hidden_of(decoder), given.threads, sequences, tokens)
            console.out(f"{name}, second decoder: {sum(spent.values()):.1f} ms in operators")
            console.out("\n".join(f"| {operator} | {milliseconds:.1f} |" for operator, milliseconds in spent.items()))
    elif given.checkpoint is None:
        tell_times(sides)
    else:
        tell_distances(given, sides)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.many_rows", arguments)


if __name__ == "__main__":
    sys.exit(main())
