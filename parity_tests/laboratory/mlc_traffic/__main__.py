"""``python -m parity_tests.laboratory.mlc_traffic``: bytes and operations of every kernel of a phone's library.

Three sums a kernel: what it needs at least (its weights once, its activations once; nothing for a kernel that only copies),
what it moves (the same and what it keeps in memory for itself), and what its blocks of threads ask their caches for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence

from parity_tests.laboratory.mlc_traffic.functions import KernelTraffic, function_traffic
from parity_tests.laboratory.mlc_traffic.libraries import request_of, scheduled_module, spec_of
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

MOST = 1.15
"""What a kernel of decode may move, over its least."""

FUNCTIONS = ("decode", "prefill", "image_embed")
ROUTED = {"decode": "run_decoder", "prefill": "run_decoder"}
"""What stands for a function that a family's library lacks, or that is wrong for its pictures."""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(
        prog,
        "Count the bytes and operations of every kernel of a phone's library.",
        f"exit code 0 when no kernel of decode moves more than {MOST} times its least, 5 when one does",
    )
    made.add_argument("--model", default="minicpm-v", help="a family's name")
    made.add_argument("--size", default="full", choices=("full", "tiny"), help="published or demo shape")
    made.add_argument("--target", default="android", choices=("android", "ios"))
    made.add_argument("--layers", type=flags.whole_number(1), default=0, metavar="N", help="only so many; default all")
    made.add_argument("--context", type=flags.whole_number(16), default=1024, metavar="N", help="positions in the cache")
    made.add_argument("--functions", default=",".join(FUNCTIONS), metavar="LIST", help="of: " + ", ".join(FUNCTIONS))
    flags.json_file(made, "write the rows here")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    spec = spec_of(options.model, options.size, options.layers)
    request = request_of(spec, options.target)
    module = scheduled_module(request, options.target)
    known = {variable.name_hint for variable in module.get_global_vars()}
    rows = {}
    for function in options.functions.split(","):
        name = function if function in known else ROUTED.get(function, function)
        if name not in known:
            console.out(f"{function}: not in this library")
            continue
        tokens = request.limits.prefill_chunk if function == "prefill" else 1
        kernels = function_traffic(module, name, sizes(tokens, options.context))
        console.out("\n".join(table(f"{function} ({name}, {tokens} tokens, {options.context} in the cache)", kernels)))
        rows[function] = kernels
    if options.json_file:
        values = {name: [vars(kernel) | {"ratio": kernel.ratio} for kernel in kernels] for name, kernels in rows.items()}
        options.json_file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    worst = max((kernel.ratio for kernel in rows.get("decode", [])), default=0.0)
    return ExitCode.OK if worst <= MOST else ExitCode.PARITY_FAILED


def sizes(tokens: int, context: int) -> dict[str, int]:
    """Values of the symbolic sizes and counters, by the names that our blocks and TVM's cache kernels give them."""
    pages = -(-context // 16)
    one = dict.fromkeys(("batch_size", "outputs", "B", "rotary_mode", "causal", "batch_size_plus_1"), 1)
    cached = {"kv_chunk_len": context, "max_num_pages": pages, "num_pages": pages, "nnz_pages": pages}
    fed = {"seq_len": tokens, "ntoken": tokens, "qo_len": tokens, "kv_len": tokens, "total_len": tokens}
    return {**one, **cached, **fed, "rotary_mode": 0}


def table(title: str, kernels: Sequence[KernelTraffic]) -> Iterator[str]:
    """The rows for a terminal, heaviest first, and their sum."""
    yield title
    yield f"  {'kernel':<44}{'calls':>6}{'least MB':>11}{'moved MB':>11}{'ratio':>7}{'asked MB':>11}{'ratio':>7}{'GFLOP':>9}"
    for kernel in sorted(kernels, key=lambda kernel: -kernel.calls * kernel.moved):
        yield row(kernel.name, kernel.calls, kernel)
    known = [kernel for kernel in kernels if kernel.counted]
    launches, least, moved = (sum(k.calls * getattr(k, name) for k in kernels) for name in ("launches", "least", "moved"))
    asked, flops = (sum(k.calls * getattr(k, name) for k in known) for name in ("asked", "flops"))
    yield row("all", sum(k.calls for k in kernels), KernelTraffic("", 1, launches, least, moved, asked, flops))
    yield f"  {launches} starts of a kernel"


def row(name: str, calls: int, kernel: KernelTraffic) -> str:
    ratio = f"{kernel.ratio:>7.2f}" if kernel.least else f"{'copy':>7}"
    asked = f"{kernel.asked_ratio:>7.2f}" if kernel.least else f"{'copy':>7}"
    if not kernel.counted:
        known = f"{kernel.least / 1e6:>11.3f}{kernel.moved / 1e6:>11.3f}{ratio}"
        return f"  {name[:43]:<44}{calls:>6}{known}{'-':>11}{'-':>7}{'-':>9}"
    mb = [f"{count / 1e6:>11.3f}" for count in (kernel.least, kernel.moved, kernel.asked)]
    return f"  {name[:43]:<44}{calls:>6}{mb[0]}{mb[1]}{ratio}{mb[2]}{asked}{kernel.flops / 1e9:>9.3f}"


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.mlc_traffic", arguments)


if __name__ == "__main__":
    sys.exit(main())
