"""What makes two GPTQs differ: llm-compressor's and ours on the same layers and inputs, one choice changed at a time.

    ENVIRONMENT/bin/python -m parity_tests.laboratory.real_model.gptq_variants WORK

ENVIRONMENT is the one that `comparison.installed` makes for llm-compressor under WORK/environments; WORK is the page's
folder, in which that command has left the model and its rows. Layers are four kinds in four blocks, inputs those of full
precision on the first quarter of the rows that methods see. Printed is the output error, as a multiple of that of our
default, geometric mean over the layers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.methods.base import LayerProblem
from calibrate.methods.clip import searched
from calibrate.methods.gptq import DAMPING, column_by_column
from calibrate.statistics.moments import Moment, output_error
from export.quantisation.codes import GroupParameters
from export.quantisation.grids import GRIDS
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from torch import Tensor

GRID, GROUP = "ort_int4_b32", 32
BLOCKS, KINDS = (0, 10, 20, 29), ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
SHARE = 4
"""Of the rows the first in so many parts is shown."""

MODEL, ROWS = "language_model", "ids.json"
"""What the page's command leaves in its folder: the model as transformers reads it, and the rows that methods see."""

OURS = "ours"


def theirs(weight: Tensor, moment: Moment, **changed: Any) -> Tensor:
    """llm-compressor's GPTQ as its modifier calls it; observer, actorder, percdamp and blocksize may differ."""
    import torch
    from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs, QuantizationStrategy
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    from llmcompressor.observers import Observer

    observer, order = changed.pop("observer", "memoryless_minmax"), changed.pop("actorder", "static")
    scheme = QuantizationArgs(
        num_bits=4, symmetric=True, strategy=QuantizationStrategy.GROUP, group_size=GROUP, observer=observer,
        actorder=None if order is None else ActivationOrdering(order),
    )  # fmt: skip
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    watching = Observer.load_from_registry(observer, base_name="weight", args=scheme, module=linear)
    watching(linear.weight)
    told = watching.get_qparams()
    scale, zero, mean = told["scale"][None], told["zero_point"][None], (moment.matrix / moment.count)[None]
    chosen: Tensor = quantize_weight(weight[None].clone(), mean, scale, zero, None, scheme, **changed)[0][0]
    return chosen


def ours(weight: Tensor, moment: Moment, scales: str = "searched", ordered: bool = True, damping: float = DAMPING) -> Tensor:
    """Our loop; scales ``searched``, of the ``largest`` value with its sign, or ``positive`` as llm-compressor's."""
    import torch

    grid = GRIDS[GRID]
    layer = LayerProblem("", weight, grid, moment)
    blocks = layer.blocks(weight)
    if scales == "searched":
        parameters = searched(layer, coarse=True)
    elif scales == "largest":
        parameters = grid.fit(blocks)
    else:
        positive = blocks.abs().amax(-1) / 7.5
        parameters = GroupParameters(positive, torch.full_like(positive, 8.0))
    order, upper = moment.factor(damping, ordered)
    codes = layer.blocks(column_by_column(layer, parameters, order, upper))
    return grid.read(codes, parameters[..., None]).reshape(weight.shape)


def rounded(weight: Tensor, moment: Moment) -> Tensor:
    """Plain rounding, whose error has nothing to do with the moment."""
    return GRIDS[GRID].dequantise(GRIDS[GRID].quantise(weight))


VARIANTS: Mapping[str, Callable[[Tensor, Moment], Tensor]] = {
    "plain rounding": rounded,
    "llm-compressor": theirs,
    "llm-compressor, scales searched": lambda w, m: theirs(w, m, observer="memoryless_mse"),
    "llm-compressor, columns as they stand": lambda w, m: theirs(w, m, actorder=None),
    "llm-compressor, damping 0.001": lambda w, m: theirs(w, m, percdamp=0.001),
    "llm-compressor, damping 0.1": lambda w, m: theirs(w, m, percdamp=0.1),
    "llm-compressor, blocks of 32 columns": lambda w, m: theirs(w, m, blocksize=32),
    "our loop, llm-compressor's scales": lambda w, m: ours(w, m, "positive"),
    "our loop, the largest value's scale with its sign": lambda w, m: ours(w, m, "largest"),
    OURS: ours,
    "ours, columns as they stand": lambda w, m: ours(w, m, ordered=False),
    "ours, damping 0.001": lambda w, m: ours(w, m, damping=0.001),
}


def _lost(make: Callable[[Tensor, Moment], Tensor], weight: Tensor, moment: Moment) -> float:
    return float(output_error(make(weight, moment) - weight, moment).sum())


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "What makes llm-compressor's GPTQ and ours differ: one choice changed at a time.")
    made.add_argument("folder", type=Path, metavar="WORK", help="the page's folder (--work of the laboratory's real_model)")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    missing = [str(path) for path in (given.folder / MODEL, given.folder / ROWS) if not path.exists()]
    if missing:
        raise UsageError(
            f"{given.folder} has no {' and no '.join(Path(path).name for path in missing)}",
            "the folder that the page was made in, with the model and the rows that methods see",
            "run `python -m parity_tests.laboratory.real_model --work DIR` first, and name that DIR",
        )
    for line in table(given.folder):
        console.out(line)
    return ExitCode.OK


def table(folder: Path) -> list[str]:
    """The table as Markdown."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype=torch.float32)
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in (f"model.layers.{block}.{kind}" for block in BLOCKS for kind in KINDS)}
    moments = {name: Moment(layer.in_features) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, seen=moments[name]: seen.add(given[0].detach()))
    with torch.no_grad():
        rows = json.loads((folder / ROWS).read_text(encoding="utf-8"))
        for row in rows[: len(rows) // SHARE]:
            model.model(torch.tensor([row]))
        weights = {name: layer.weight.data.float() for name, layer in layers.items()}
        errors = {
            variant: [_lost(make, weights[name], moments[name]) for name in layers] for variant, make in VARIANTS.items()
        }
    lines = ["| variant | output error beside ours |", "|---|---|"]
    for variant, lost in errors.items():
        ratio = math.exp(sum(math.log(one / base) for one, base in zip(lost, errors[OURS], strict=True)) / len(lost))
        lines.append(f"| {variant} | {ratio:.3f} |")
    return lines


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.real_model.gptq_variants", arguments)


if __name__ == "__main__":
    sys.exit(main())
