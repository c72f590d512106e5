"""The command line of the browser's rung: attention and packages on a browser's WebGPU."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.laboratory.browser.site import asked
from parity_tests.laboratory.consumers.command import SAMPLE, table
from parity_tests.laboratory.consumers.outcome import FAILS, compared
from parity_tests.laboratory.consumers.question import NEW_TOKENS, Question, questions
from parity_tests.laboratory.consumers.transformers_js import missing
from parity_tests.laboratory.webgpu.written_kernel import differences
from runtime_py.backends.attention_trial import Trial, trials
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, MachineError

CLEARED = [1, 1, 1, 1]
"""What a variable that is cleared in every round holds in each, once 1 is added."""

EXAMPLES = """\
examples:
  python -m parity_tests.laboratory.browser --node-modules /tmp/js
  python -m parity_tests.laboratory.browser --node-modules /tmp/js out/minicpm-v

exit code 0 when variables in loops are cleared, attention is within the limits and every package answers with our tokens, 5
when not, 7 where nothing runs
"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(
        prog, "Run attention and packages on a headless Chromium's WebGPU, and compare with what is right.", EXAMPLES
    )
    made.add_argument("packages", nargs="*", type=Path, metavar="PACKAGE", help="folders that export wrote")
    made.add_argument("--picture", type=Path, default=SAMPLE, metavar="FILE", help="what is asked about")
    made.add_argument("--node-modules", type=Path, metavar="DIR", help="folder with node_modules/@huggingface/transformers")
    made.add_argument("--gpu", action="store_true", help="on this machine's GPU instead of one in software")
    made.add_argument("--device", default="webgpu", choices=("webgpu", "wasm"), help="where packages run; default webgpu")
    made.add_argument("--seconds", type=float, default=300, metavar="S", help="of one page at most; default 300")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    if absent := missing(given.node_modules):
        console.out(f"not run: {absent}")
        return ExitCode.ENVIRONMENT
    tried = trials()
    try:
        alone = _asked(given, {"trials": [_sent(trial) for trial in tried]}, {})
    except MachineError as error:
        console.out(f"not run: {error}")
        return ExitCode.ENVIRONMENT
    if "error" in alone:
        console.out(f"not run: {alone['error']}")
        return ExitCode.ENVIRONMENT
    loop = [int(value) for value in alone["loop"]]
    cleared = "right" if loop == CLEARED else f"{FAILS}: {CLEARED} is right"
    attention = [("attention of onnxruntime-web", "worst error"), *_errors(tried, alone["trials"])]
    adapter = ", ".join(f"{name} {value}" for name, value in alone["adapter"].items())
    console.out(f"onnxruntime-web {alone['onnxruntime']}; {adapter}")
    console.out(f"a variable declared in a loop of WGSL, to which 1 is added once a round: {loop}, {cleared}\n")
    console.out(table(attention) + "\n")
    written = [(faults, f"{difference:.1e}") for faults, difference in _as_written(tried[0], alone["trials"][0])]
    console.out(table([("its kernel over all rows, written down with", "differs from the browser's by"), *written]) + "\n")
    rows = [(package.name, _answered(given, package)) for package in given.packages]
    if rows:
        console.out(table([("package", f"transformers.js, {given.device}"), *rows]))
    failed = any(FAILS in cell for row in ([cleared], *attention, *rows) for cell in row)
    return ExitCode.PARITY_FAILED if failed else ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.browser", arguments)


def _asked(given: argparse.Namespace, task: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    modules = {"node_modules": given.node_modules.resolve() / "node_modules"}
    return asked(task, {**modules, **folders}, given.seconds, software=not given.gpu)


def _sent(trial: Trial) -> dict[str, Any]:
    feeds = [
        {"name": name, "type": str(array.dtype), "shape": list(array.shape), "values": array.ravel().tolist()}
        for name, array in trial.feeds.items()
    ]
    return {"model": base64.b64encode(trial.model).decode(), "feeds": feeds}


def _errors(tried: Sequence[Trial], results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each trial and how far the browser is off; a failure above the trial's limit."""
    rows = []
    for trial, result in zip(tried, results, strict=True):
        if "error" in result:
            rows.append((trial.name, f"{FAILS}: {result['error'][:160]}"))
            continue
        given = np.array(result["values"], np.float32).reshape(trial.expected.shape)
        worst = trial.off(given)
        rows.append((trial.name, f"{worst:.1e}" if worst <= trial.limit else f"{FAILS}: {worst:.1e}"))
    return rows


def _as_written(trial: Trial, result: Mapping[str, Any]) -> list[tuple[str, float]]:
    if "error" in result:
        return []
    return differences(trial, np.array(result["values"], np.float32).reshape(trial.expected.shape))


def _answered(given: argparse.Namespace, package: Path) -> str:
    """Whether the browser's tokens are those of our runtime."""
    ours = questions(package, given.picture)
    task = {
        "trials": [],
        "folder": package.resolve().name,
        "device": given.device,
        "newTokens": NEW_TOKENS,
        "stops": list(ours[0].stops),
        "questions": [_question(question) for question in ours],
    }
    try:
        result = _asked(given, task, {"packages": package.resolve().parent})
    except MachineError as error:
        return f"{FAILS}: {error.what}"
    if wrong := result.get("error") or result.get("answersError"):
        return f"{FAILS}: {wrong[:160]}"
    return compared(ours, lambda: [tuple(answer) for answer in result["answers"]])


def _question(question: Question) -> dict[str, Any]:
    pixels = question.pixels
    return {
        "ids": question.ids.tolist(),
        "pixels": None if pixels is None else pixels.ravel().tolist(),
        "shape": None if pixels is None else list(pixels.shape),
    }
