"""What a cache in bytes does to a decoder: how far what it says is from float32, by how its scales were chosen.

    python -m parity_tests.laboratory.cache_bytes --package PACKAGE --checkpoint FOLDER --calibration FOLDER
        [--beside PACKAGE] [--text FILE] [--windows 4] [--tokens 192] [--forms]

Reads a text, each window of it from nothing, through the checkpoint in float32, through the package's codes in float32, with
keys and values as they are and in bytes, and through the package; ``--beside`` is one of the same codes with another cache.
``--forms`` tries other scales than the calibration's in PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from export.quantisation.cache_scales import CacheScales
from parity_tests.check.candidate import open_candidate
from parity_tests.laboratory.cache_distance import CodesRead
from parity_tests.laboratory.text_distance import reading_flags
from parity_tests.reference.checkpoint_side import cache_scales
from parity_tests.reference.reference import TorchBackend
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

MARGINS = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0)


def forms(scales: CacheScales) -> Iterator[tuple[str, CacheScales]]:
    """Other scales by what they are: one for each head, one for all heads, and smaller or larger ones a channel."""
    kept = scales.tensors
    yield "a scale a head", CacheScales({n: s.amax(1, keepdim=True).expand_as(s) for n, s in kept.items()})
    yield "a scale a tensor", CacheScales({n: s.max().expand_as(s) for n, s in kept.items()})
    for margin in MARGINS:
        yield f"a scale a channel, {margin} times", CacheScales({name: margin * scale for name, scale in kept.items()})


def tell(given: argparse.Namespace) -> None:
    """The table."""
    read = CodesRead.begun(given, given.calibration, "", "codes in float32, cache as it is")
    scales = cache_scales(read.checkpoint, read.side.examiner.record_name)
    tried = [("the same, cache in bytes", scales), *(forms(scales) if given.forms else ())]
    for name, chosen in tried:
        arithmetic = replace(read.plain, cache=chosen)
        read.row(name, TorchBackend(read.checkpoint.spec, read.weights, arithmetic=arithmetic))
    for folder in filter(None, (given.package, given.beside)):
        other = open_candidate(folder, trust=True)
        read.row(f"package, cache in {other.block['cache']}", other.backend, other)
        other.backend.close()


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "How far a cache in bytes is from float32.")
    reading_flags(made, "exported with --cache-precision int8")
    made.add_argument("--beside", type=Path, metavar="DIR", help="one of the same calibration, with another cache")
    made.add_argument("--calibration", type=Path, required=True, metavar="DIR", help="what it was made with")
    made.add_argument("--forms", action="store_true", help="and other scales, in PyTorch")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    tell(given)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.cache_bytes", arguments)


if __name__ == "__main__":
    sys.exit(main())
