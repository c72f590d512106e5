"""``edgeproof synthesize``: a random checkpoint in a published layout, for rehearsals without a download."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.memory import human_bytes

log = logging.getLogger("edgeproof")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Write a random checkpoint in a family's published layout, without a tokenizer.")
    made.add_argument("--model", required=True, metavar="MODEL", help="family alias or hub id (edgeproof models)")
    made.add_argument("--size", required=True, metavar="S", help="full, as published, or tiny")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")
    made.add_argument("--variant", default="", metavar="V", help="published version, e.g. 2.0; default what --model says")
    made.add_argument("--dtype", metavar="T", default="bfloat16", help="bfloat16 (the default), float16 or float32")
    flags.seed(made, "of the numbers")
    flags.json_result(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.checkpoint.synthesize import SynthesisRequest, synthesize

    start = time.monotonic()
    seed = flags.seed_number(options.seed)
    result = synthesize(SynthesisRequest(options.model, options.size, options.output, options.variant, options.dtype, seed))
    log.info("no tokenizer is written: put one beside config.json if the rehearsal needs text")
    if options.json:
        counts = {"tensors": result.tensors, "parameters": result.parameters, "bytes": result.bytes}
        console.out_json({"folder": str(result.folder), **counts, "seed": seed})
    else:
        console.out(
            f"{result.folder}: {result.tensors} tensors, {result.parameters:,} parameters, {human_bytes(result.bytes)} "
            f"in {time.monotonic() - start:.1f} s"
        )
    return ExitCode.OK


COMMAND = Command(parser, _run)
