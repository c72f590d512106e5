"""A checkpoint's matrices in the codes of bitsandbytes, as transformers saves a model that it loaded in 4 or 8 bits.

    python -m parity_tests.laboratory.bitsandbytes_checkpoint --checkpoint FOLDER -o DIR [--kind nf4|fp4|int8] [--plain]
        [--blocksize 64] [--dtype bfloat16] [--skip lm_head --skip out_proj ...]

Written anew, so that it runs where bitsandbytes does not; `bitsandbytes_golden` holds what the library itself stores and
reads, and the tests hold this against it. Quantised is what a ``torch.nn.Linear`` would hold: matrices whose name ends in
``weight``, but for embeddings, `TABLES`, and modules of ``--skip`` (huggingface/transformers,
src/transformers/integrations/bitsandbytes.py, ``replace_with_bnb_linear``). Source of the codes:
bitsandbytes-foundation/bitsandbytes, bitsandbytes/backends/default/ops.py and bitsandbytes/functional.py (``quantize_4bit``,
``create_dynamic_map``, ``int8_vectorwise_quant``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.source.bitsandbytes_state import KINDS, code_values
from export.source.checkpoint import WEIGHT_FILES, open_checkpoint
from runtime_py.command import flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

NESTED_BLOCK = 256
TABLES = ("embed", "position", "patch", "query", "norm", "conv")
"""Parts of names of what has two axes, or a name like a matrix's, and is no ``torch.nn.Linear``."""

SKIPPED = ("lm_head", "out_proj", "kv_proj")
"""Modules that OpenBMB/MiniCPM-V, quantize/bnb_quantize.py leaves alone (``llm_int8_skip_modules``)."""


@dataclass(frozen=True)
class Form:
    """How matrices are quantised.

    Attributes:
        kind: ``nf4``, ``fp4``, or ``int8`` for LLM.int8().
        nested: the scales are codes themselves (``bnb_4bit_use_double_quant``).
        dtype: what the matrix is before it is quantised, and what it is when it is read.
        storage: of the 4-bit codes (``bnb_4bit_quant_storage``).
    """

    kind: str = "nf4"
    nested: bool = True
    blocksize: int = 64
    dtype: str = "bfloat16"
    storage: str = "uint8"

    def config(self, skipped: Sequence[str] = ()) -> dict[str, Any]:
        """``quantization_config`` of config.json, as transformers writes it."""
        four = self.kind in KINDS
        return {
            "_load_in_4bit": four,
            "_load_in_8bit": not four,
            "bnb_4bit_compute_dtype": self.dtype if four else "float32",
            "bnb_4bit_quant_storage": self.storage,
            "bnb_4bit_quant_type": self.kind if four else "fp4",
            "bnb_4bit_use_double_quant": four and self.nested,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": list(skipped) or None,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "quant_method": "bitsandbytes",
        }


def dynamic_values() -> Tensor:
    """The 256 values of nested scales, float32: seven powers of ten, each cut twice as finely as the one below it."""
    positive = []
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
        positive += (10.0 ** (power - 6) * (edges[:-1] + edges[1:]) / 2).tolist()
    return torch.tensor(sorted([*(-value for value in positive), *positive, 0.0, 1.0]))


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """uint8: the place in ``table`` that is nearest to each of ``values``."""
    order = torch.argsort(table)
    middles = (table[order[:-1]] + table[order[1:]]) / 2
    return order[torch.bucketize(values, middles)].to(torch.uint8)


def blockwise(values: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """uint8 codes of flat float32 ``values``, and the scale of each block."""
    padded = torch.nn.functional.pad(values, (0, -len(values) % size)).view(-1, size)
    absmax = padded.abs().amax(1)
    codes = nearest((padded * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1), table)
    return codes.view(-1)[: len(values)], absmax


def four_bits(name: str, matrix: Tensor, form: Form) -> dict[str, Tensor]:
    """A matrix as bitsandbytes stores it, by name."""
    table = code_values(form.kind)
    given = matrix.to(getattr(torch, form.dtype)).float()
    codes, absmax = blockwise(given.reshape(-1), table, form.blocksize)
    if len(codes) % 2:
        codes = torch.cat([codes, nearest(torch.zeros(1), table)])
    packed = (codes[::2] << 4 | codes[1::2]).view(getattr(torch, form.storage))
    state: dict[str, Any] = {"quant_type": form.kind, "blocksize": form.blocksize, "dtype": form.dtype}
    state["shape"] = list(matrix.shape)
    parts = {"absmax": absmax, "quant_map": table.clone()}
    if form.nested:
        offset, values = absmax.mean(), dynamic_values()
        parts["absmax"], parts["nested_absmax"] = blockwise(absmax - offset, values, NESTED_BLOCK)
        parts["nested_quant_map"] = values
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset.item()}
    told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts[f"quant_state.bitsandbytes__{form.kind}"] = told
    return {name: packed[:, None], **{f"{name}.{end}": value for end, value in parts.items()}}


def eight_bits(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """A matrix as LLM.int8() stores it: it is float16 before, whatever it was."""
    given = matrix.half().float()
    scale = given.abs().amax(1)
    codes = (given * (127 / scale)[:, None]).round().to(torch.int8)
    place = name.removesuffix(".weight")
    return {name: codes, f"{place}.SCB": scale, f"{place}.weight_format": torch.tensor(0, dtype=torch.uint8)}


def is_quantised(name: str, shape: Sequence[int], skipped: Collection[str]) -> bool:
    """Whether a tensor is the matrix of a linear layer that is quantised."""
    modules = name.split(".")
    plain = name.endswith(".weight") and len(shape) == 2 and not any(part in name.lower() for part in TABLES)
    return plain and not set(skipped) & set(modules)


def quantise(folder: Path, out: Path, form: Form, skipped: Sequence[str] = SKIPPED) -> list[str]:
    """Write the checkpoint of ``folder`` (one set of files) to the new folder ``out``; returns what was quantised."""
    source = open_checkpoint(folder)
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*WEIGHT_FILES))
    tensors: dict[str, Tensor] = {}
    names = [name for name, info in source.infos.items() if is_quantised(name, info.shape, skipped)]
    for name in source.infos:
        value = source.read(name)
        if name not in names:
            tensors[name] = value
        else:
            tensors |= four_bits(name, value, form) if form.kind in KINDS else eight_bits(name, value)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = form.config(skipped)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return names


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Write a checkpoint in the codes of bitsandbytes.")
    made.add_argument("--checkpoint", type=Path, required=True, metavar="DIR")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a new folder")
    form_flags(made)
    made.add_argument("--skip", action="append", metavar="MODULE", help="default " + ", ".join(SKIPPED))
    flags.talk(made)
    return made


def form_flags(made: Parser) -> None:
    """The flags of a `Form`."""
    made.add_argument("--kind", choices=(*KINDS, "int8"), default="nf4", help="default nf4")
    made.add_argument("--plain", action="store_true", help="scales in float32, not nested")
    made.add_argument("--blocksize", type=int, default=64, metavar="N", help="default 64")
    made.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="default bfloat16")


def form_of(given: argparse.Namespace) -> Form:
    """What the flags say."""
    return Form(given.kind, not given.plain, given.blocksize, given.dtype)


def _run(given: argparse.Namespace) -> int:
    quantise(given.checkpoint, given.output, form_of(given), given.skip or SKIPPED)
    return ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.bitsandbytes_checkpoint", arguments)


if __name__ == "__main__":
    sys.exit(main())
