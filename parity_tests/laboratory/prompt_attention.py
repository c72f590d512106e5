"""What attention of a prompt costs over a flat cache: the machine code of packages beside ONNX Runtime's operator.

    python -m parity_tests.laboratory.prompt_attention [--heads 36 --kv-heads 36] [--size 64] [--threads 1]

Milliseconds a call of some tokens of one sequence, by the positions before them and by the cache's type, and 10^9 products
a second of those that a causal mask leaves; beside them GroupQueryAttention of the same tokens, which are rotated already.
Both take turns, medians of rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
import tvm_ffi
from tvm.target import Target

from export.processor.block_instructions import block_instructions
from export.processor.flat_rows import FlatHeads
from export.processor.prompt_attention import prompt_attention
from export.processor.targets import TARGETS
from parity_tests.laboratory.flat_attention import REST, STEP, kept, session
from parity_tests.laboratory.kernels import kernel_of
from parity_tests.laboratory.turns import in_turns
from runtime_py.command import console, flags
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

    def floats(self, *shape: int) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def caches(self) -> list[np.ndarray]:
        shape = 1, self.heads.keys, self.before + self.tokens, self.heads.width
        one = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        one = one if self.heads.cache == "int8" else (one * STEP).astype(self.heads.cache)
        return [kept(one), kept(one)]

    def ours(self, kernel: Callable[..., None]) -> Callable[[], None]:
        heads, half = self.heads, self.heads.rotary // 2
        angles = self.floats(self.tokens, half)
        scales = [np.full(heads.keys * heads.width, STEP)] * 2 if heads.cache == "int8" else []
        arrays = [self.floats(self.tokens, (heads.queries + 2 * heads.keys) * heads.size), np.cos(angles), np.sin(angles)]
        arrays += [np.array([self.before], np.int32), *scales, *self.caches()]
        arrays.append(np.zeros((self.tokens, heads.queries * heads.size), np.float32))
        given = [tvm_ffi.from_dlpack(array) for array in arrays]
        return lambda: kernel(*given)

    def theirs(self, opened: onnxruntime.InferenceSession) -> Callable[[], None]:
        make, heads, quantised = onnxruntime.OrtValue.ortvalue_from_numpy, self.heads, self.heads.cache == "int8"
        kind = np.float32 if quantised else heads.cache
        counts = zip("qkv", (heads.queries, heads.keys, heads.keys), strict=True)
        fed = {name: self.floats(1, self.tokens, count * heads.width).astype(kind) for name, count in counts}
        total = self.before + self.tokens
        fed |= {"last": np.array([total - 1], np.int32), "total": np.array([total], np.int32)}
        if quantised:
            scales = np.full((heads.keys, 1, heads.width), STEP)
            fed |= {"key_scale": scales, "value_scale": scales}
        binding = opened.io_binding()
        for name, array in fed.items():
            binding.bind_ortvalue_input(name, make(array))
        for past, present, array in zip(("past_key", "past_value"), ("key", "value"), self.caches(), strict=True):
            buffer = make(array)
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_ortvalue_output("out", make(np.empty((1, self.tokens, heads.queries * heads.width), kind)))
        return lambda: opened.run_with_iobinding(binding)


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Time attention of a prompt over a flat cache beside ONNX Runtime's operator.")
    numbers = (("--heads", 36), ("--kv-heads", 36), ("--size", 64), ("--threads", 1), ("--rounds", 9))
    for name, default in numbers:
        made.add_argument(name, type=flags.whole_number(1), default=default, metavar="N", help="default %(default)s")
    for name, least, several in (("--tokens", 1, (64, 128, 512)), ("--before", 0, (0, 512))):
        number = flags.whole_number(least)
        made.add_argument(name, type=number, nargs="+", default=several, metavar="N", help="default %(default)s")
    kinds = ("float32", "float16", "int8")
    made.add_argument("--caches", nargs="+", default=("float16", "int8"), choices=kinds, help="default %(default)s")
    made.add_argument("--target", default="x86-64-vnni", choices=tuple(TARGETS), help="default %(default)s")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    os.environ |= {"TVM_NUM_THREADS": str(given.threads), "TVM_THREAD_POOL_SPIN_COUNT": "3000"}
    target, rest = Target(TARGETS[given.target]), REST if given.threads > 1 else 0
    instructions = block_instructions(target)
    words = instructions is not None and instructions.words
    for cache in given.caches:
        heads = FlatHeads(given.heads, given.kv_heads, given.size, given.size, given.size, given.size**-0.5, cache)
        kernel, opened = kernel_of(prompt_attention(heads, words), target), session(heads, given.threads)
        for tokens in given.tokens:
            for before in given.before:
                case = Case(heads, tokens, before)
                calls = {"ours": case.ours(kernel), "ONNX Runtime": case.theirs(opened)}
                line = f"{cache:8} {tokens:4} tokens behind {before:4}"
                for name, seconds in in_turns(calls, given.rounds, rest).items():
                    line += f"  {name} {seconds * 1e3:8.3f} ms {case.products / seconds / 1e9:5.1f} GMAC/s"
                console.out(line)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each kind of call; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.prompt_attention", arguments)


if __name__ == "__main__":
    sys.exit(main())
