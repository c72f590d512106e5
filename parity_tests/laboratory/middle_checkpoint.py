"""Write a random MiniCPM-V of a middle size, for rehearsals that run an export dozens of times.

    python -m parity_tests.laboratory.middle_checkpoint -o DIR

It has every kind of tensor and five shards; its 50 million parameters lie between the demo's million and the published
3.4 billion.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

SHARD_BYTES = 30_000_000
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 2,
    "vocab_size": 8192,
    "timm_model_args": {"depth": 2, "embed_dim": 384, "num_heads": 6},
}
"""Laid over the tiny config."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Write a random MiniCPM-V between the demo's size and the published one.")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    flags.seed(made, "of the numbers")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    request = SynthesisRequest(
        "minicpm-v", "tiny", options.output, seed=flags.seed_number(options.seed), shard_bytes=SHARD_BYTES, overrides=SIZES
    )
    result = synthesize(request)
    console.out(f"{result.tensors} tensors, {result.parameters:,} parameters, {result.bytes / 1e6:.0f} MB")
    return int(ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.middle_checkpoint", arguments)


if __name__ == "__main__":
    sys.exit(main())
