"""Write what bitsandbytes itself stores of small matrices, and what it reads of them: parity_tests/goldens/bitsandbytes.

    pip install bitsandbytes==0.50.2
    python -m parity_tests.laboratory.bitsandbytes_golden -o parity_tests/goldens/bitsandbytes

The library is needed here alone, in an environment of its own; it runs on a CPU. ``given.safetensors`` holds the matrices,
``stored.safetensors`` what the state dictionaries of its layers hold, ``read.safetensors`` what its ``dequantize_4bit`` and
``int8_vectorwise_dequant`` make of that.

A matrix is read as one row. Blocks run over the flat matrix, in every kernel but one: that of 0.50.2 for AVX-512
(csrc/cpu_ops.cpp, ``dequantizeBlockwise4bitCpu``) takes ``columns // blocksize`` scales a row and reads others than were
stored where a row is no whole number of blocks (MLPs of 4304 in blocks of 64). One row has no other to lose its place to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from parity_tests.laboratory.bitsandbytes_checkpoint import Form
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

CASES: dict[str, tuple[tuple[int, int], Form]] = {
    "nested": ((40, 96), Form("nf4", True, 64, "bfloat16")),
    "fp4": ((7, 40), Form("fp4", False, 64, "float16")),
    "odd": ((5, 33), Form("nf4", False, 32, "float32")),
    "fp4nested": ((9, 50), Form("fp4", True, 128, "float32")),
    "stored": ((16, 64), Form("nf4", True, 64, "float16", "bfloat16")),
    "int8": ((8, 24), Form("int8", False, 0, "float16")),
}
"""Name to shape and form; among them last blocks that are not full, and rows that begin inside a byte."""


def drawn(shape: tuple[int, int], seed: int) -> Tensor:
    """A matrix whose rows differ in size, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)


def stored_and_read(matrix: Tensor, form: Form) -> tuple[dict[str, Tensor], Tensor]:
    """The state dictionary of the library's layer, and the matrix that it reads."""
    import bitsandbytes as library

    rows, columns = matrix.shape
    if form.kind == "int8":
        eight = library.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
        eight.weight = library.nn.Int8Params(matrix.half(), requires_grad=False, has_fp16_weights=False)
        eight = eight.to("cpu")
        stored = dict(eight.state_dict())
        return stored, library.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])
    four = library.nn.Linear4bit(columns, rows, bias=False)
    four.weight = library.nn.Params4bit(
        matrix.to(getattr(torch, form.dtype)),
        requires_grad=False,
        blocksize=form.blocksize,
        compress_statistics=form.nested,
        quant_type=form.kind,
        quant_storage=getattr(torch, form.storage),
    )
    four = four.to("cpu")
    stored = {name: value.clone() for name, value in four.state_dict().items()}
    four.weight.quant_state.shape = torch.Size((1, rows * columns))
    read = library.functional.dequantize_4bit(four.weight.data, four.weight.quant_state)
    return stored, read.view(rows, columns)


def write(folder: Path) -> None:
    """The three files."""
    given, stored, read = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for seed, (name, (shape, form)) in enumerate(CASES.items()):
        matrix = drawn(shape, seed).to(getattr(torch, form.dtype))
        parts, values = stored_and_read(matrix, form)
        given[f"{name}.weight"], read[f"{name}.weight"] = matrix, values.contiguous()
        stored |= {f"{name}.{end}": value.contiguous().clone() for end, value in parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in (("given", given), ("stored", stored), ("read", read)):
        save_file(tensors, folder / f"{file}.safetensors")


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What bitsandbytes stores of small matrices, and what it reads.")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    write(given.output)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.bitsandbytes_golden", arguments)


if __name__ == "__main__":
    sys.exit(main())
