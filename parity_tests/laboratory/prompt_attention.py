"""What attention of a prompt costs over a flat cache: the machine code of packages beside ONNX Runtime's operator.

    python -m parity_tests.laboratory.prompt_attention [--heads 36 --kv-heads 36] [--size 64] [--threads 1]

Milliseconds a call of some tokens of one sequence, by the positions before them and by the cache's type, and 10^9 products
a second of those that a causal mask leaves; beside them GroupQueryAttention of the same tokens, which are rotated already.
Both take turns, medians of rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime
import tvm_ffi
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.flat_rows import FlatHeads
from export.processor.prompt_attention import prompt_attention
from export.processor.targets import TARGETS
from parity_tests.laboratory.flat_attention import STEP, attention_flags, bound, drawn, floats, kept, prepared, rest_of
from parity_tests.laboratory.turns import in_turns
from runtime_py.command import console
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode


@dataclass(frozen=True)
class Case:
    """A call of ``tokens`` behind ``before`` positions."""

    heads: FlatHeads
    tokens: int
    before: int

    @property
    def products(self) -> int:
        """Of scores and of values, where each token sees what is before it and itself."""
        pairs = self.tokens * self.before + self.tokens * (self.tokens + 1) // 2
        return 2 * pairs * self.heads.queries * self.heads.size

    def caches(self) -> tuple[np.ndarray, np.ndarray]:
        one = drawn(self.heads, 1, self.before + self.tokens)
        return kept(one), kept(one)

    def ours(self, kernel: Callable[..., None]) -> Callable[[], None]:
        heads, half = self.heads, self.heads.rotary // 2
        angles = floats(self.tokens, half)
        scales = [np.full(heads.keys * heads.width, STEP)] * 2 if heads.cache == "int8" else []
        arrays = [floats(self.tokens, (heads.queries + 2 * heads.keys) * heads.size), np.cos(angles), np.sin(angles)]
        arrays += [np.array([self.before], np.int32), *scales, *self.caches()]
        arrays.append(np.zeros((self.tokens, heads.queries * heads.size), np.float32))
        given = [tvm_ffi.from_dlpack(array) for array in arrays]
        return lambda: kernel(*given)

    def theirs(self, opened: onnxruntime.InferenceSession) -> Callable[[], None]:
        total = self.before + self.tokens
        (binding,) = bound(opened, self.heads, 1, self.tokens, total, [self.caches()])
        return lambda: opened.run_with_iobinding(binding)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time attention of a prompt over a flat cache beside ONNX Runtime's operator.")
    attention_flags(made, ("--tokens", 1, (64, 128, 512)), ("--before", 0, (0, 512)))
    return made


def _run(given: argparse.Namespace) -> int:
    instructions = block_instructions(Target(TARGETS[given.target]))
    words = instructions is not None and instructions.words
    for heads, kernel, opened in prepared(given, partial(prompt_attention, words=words)):
        for tokens in given.tokens:
            for before in given.before:
                case = Case(heads, tokens, before)
                calls = {"ours": case.ours(kernel), "ONNX Runtime": case.theirs(opened)}
                line = f"{heads.cache:8} {tokens:4} tokens behind {before:4}"
                for name, seconds in in_turns(calls, given.rounds, rest_of(given)).items():
                    line += f"  {name} {seconds * 1e3:8.3f} ms {case.products / seconds / 1e9:5.1f} GMAC/s"
                console.out(line)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each kind of call; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.prompt_attention", arguments)


if __name__ == "__main__":
    sys.exit(main())
