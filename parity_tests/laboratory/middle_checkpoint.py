"""Write a random MiniCPM-V of a size between the demo's million parameters and the published 3.4 billion.

    python -m parity_tests.laboratory.middle_checkpoint -o DIR [--size middle|half] [--kv-heads N] [--vocabulary N]

``middle`` is for rehearsals that run an export dozens of times: 50 million parameters, every kind of tensor, five shards.
``half`` has a decoder of half a billion weights, MiniCPM's ratios at hidden 1024, a tower of SigLIP's base size, and the
demo's tokenizer beside it, so that it can be served: `serving_speed` does. Its 16 heads have keys and values of their own;
published decoders of this size share each pair among several (Qwen2.5-0.5B: 14 heads, 2 pairs), which ``--kv-heads`` does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.source.hub import DEMO_FOLDER
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
"""Laid over the tiny config, of ``middle``; `HALF` is of ``half``."""

HALF = {
    "hidden_size": 1024,
    "intermediate_size": 2560,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 40,
    "vocab_size": 32768,
    "dim_model_base": 256,
    "max_position_embeddings": 4096,
    "image_size": 448,
    "query_num": 64,
    "timm_model_args": {"depth": 12, "embed_dim": 768, "num_heads": 12, "mlp_ratio": 4.0},
}
BY_NAME = {"middle": (SIZES, SHARD_BYTES), "half": (HALF, 2_000_000_000)}
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Write a random MiniCPM-V between the demo's size and the published one.")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    made.add_argument("--size", choices=tuple(BY_NAME), default="middle", help="default middle")
    made.add_argument(
        "--kv-heads", type=flags.whole_number(1), metavar="N", help="pairs of keys and values; default one a head"
    )
    made.add_argument("--vocabulary", type=flags.whole_number(200), metavar="N", help="tokens; default as the size has them")
    flags.seed(made, "of the numbers")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    sizes, shard_bytes = BY_NAME[options.size]
    asked = {"num_key_value_heads": options.kv_heads, "vocab_size": options.vocabulary}
    sizes = {**sizes, **{name: number for name, number in asked.items() if number is not None}}
    seed = flags.seed_number(options.seed)
    request = SynthesisRequest("minicpm-v", "tiny", options.output, seed=seed, shard_bytes=shard_bytes, overrides=sizes)
    result = synthesize(request)
    if options.size == "half":
        for name in TOKENIZER:
            shutil.copy(DEMO_FOLDER / "minicpm-v" / name, options.output / name)
    console.out(f"{result.tensors} tensors, {result.parameters:,} parameters, {result.bytes / 1e6:.0f} MB")
    return int(ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.middle_checkpoint", arguments)


if __name__ == "__main__":
    sys.exit(main())
