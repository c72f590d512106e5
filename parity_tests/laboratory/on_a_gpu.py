"""Everything that docs/results/gpu.md lists, in one run on a machine with a GPU: a log a step, and a table of all.

    python -m parity_tests.laboratory.on_a_gpu --package DIR... --report-dir DIR [--full CHECKPOINT --full-package DIR...]
        [--at-once 4] [--seconds 200] [--only STEP...] [--provider CUDAExecutionProvider] [--device cuda]

Packages are of demo checkpoints, for desktop-gpu or a model of a server-gpu repository (``REPO/NAME/1/package``); with
``--full`` a checkpoint of a published size and its packages are timed and served too. Where time on the GPU is short, make
all packages beforehand. ``--device cpu --provider CPUExecutionProvider`` rehearses the run where there is no GPU. Exit code
0 when every step ended with 0 or 7 (nothing on this machine to run it), else 5.

| step | command |
|---|---|
| gpu-check, parity | stages and answers against PyTorch on the device, several packages at once |
| rows | caches of several sequences in the GPU's memory (pytest) |
| verify, bench, share | one package after another: its own sample, rates, the engine's part of a step |
| serve | a server's answers against those given alone, then its load figures |
| speed | PyTorch eager and compiled, and packages, beside what the device can do |
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from parity_tests.laboratory.served import served
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import EdgeproofError, ExitCode, UsageError

ROOT = Path(__file__).resolve().parents[2]
DEMOS = ROOT / "export" / "demo" / "checkpoints"
TOGETHER = ("gpu-check", "parity")
STEPS = (*TOGETHER, "rows", "verify", "bench", "share", "serve", "speed")
CUT_OFF = -1
REQUESTS = 300
LEVELS = "1,4,8"


@dataclass(frozen=True)
class Step:
    """One command of Python, or one against a server of ``served``; ``name`` is its log's."""

    kind: str
    name: str
    command: tuple[str, ...]
    served: Path | None = None


def steps(given: argparse.Namespace) -> Iterator[Step]:
    """All that was asked for, in order."""
    report, provider = given.report_dir, ("--provider", given.provider)
    for package in given.package:
        family = json.loads((package / "manifest.json").read_text(encoding="utf-8"))["family"]
        held = ("--package", str(package), "--reference", str(DEMOS / family))
        for kind, more in (("gpu-check", ("gpu-check",)), ("parity", ("--device", given.device))):
            name = f"{kind}-{label(package)}"
            yield Step(kind, name, ("-m", "parity_tests", *more, *held, "--report-dir", str(report / name)))
    yield Step("rows", "rows", ("-m", "pytest", "-q", "-rs", "-m", "gpu", "runtime_py/backends"))
    for package in [*given.package, *given.full_package]:
        name, held = label(package), ("--package", str(package), *provider)
        yield Step("verify", f"verify-{name}", ("-m", "runtime_py", "verify", *held))
        yield Step("bench", f"bench-{name}", ("-m", "runtime_py", "bench", *held))
        share = ("-m", "parity_tests.laboratory.engine_share", str(package), *provider, "--at-a-time", *LEVELS.split(","))
        yield Step("share", f"share-{name}", share)
        if package in given.package:
            alone = ("-m", "parity_tests.laboratory.server_rehearsal", *held, "--requests", str(REQUESTS), "--server")
            yield Step("serve", f"answers-{name}", alone, package)
        load = ("-m", "runtime_py", "bench", "--concurrency", LEVELS, "--serve")
        yield Step("serve", f"load-{name}", load, package)
    if given.full:
        packages = [word for package in given.full_package for word in ("--package", str(package))]
        timed = ("--reference", str(given.full), *packages, "--json-file", str(report / "speed.json"))
        yield Step("speed", "speed", ("-m", "parity_tests.laboratory.gpu_speed", *timed, "--device", given.device))


def label(package: Path) -> str:
    """A package's folder, or the model's in a Triton repository."""
    return package.parents[1].name if package.name == "package" else package.name


def run(step: Step, report: Path, provider: str, seconds: float) -> int:
    """The exit code, `CUT_OFF` where it took too long; what it said lies in the step's log."""
    if step.served is None:
        return _logged(step.command, report / f"{step.name}.txt", seconds)
    try:
        with served(step.served, ("--provider", provider)) as server:
            return _logged((*step.command, server.url), report / f"{step.name}.txt", seconds)
    except EdgeproofError as error:
        (report / f"{step.name}.txt").write_text(f"{error}\n", encoding="utf-8")
        return int(error.exit_code)


def _logged(command: Sequence[str], log: Path, seconds: float) -> int:
    with log.open("w", encoding="utf-8") as stream:
        try:
            given = [sys.executable, *command]
            return subprocess.run(
                given, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return CUT_OFF


def timed(step: Step, call: Callable[[Step], int]) -> tuple[Step, int, float]:
    """A step, its exit code and its seconds; said as soon as it ends."""
    began = time.monotonic()
    code = call(step)
    taken = time.monotonic() - began
    console.out(f"{step.name}: exit code {code}, {taken:.0f} s" if code != CUT_OFF else f"{step.name}: cut off")
    return step, code, taken


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Run what docs/results/gpu.md lists on this machine's GPU, a log a step, and print a table.")
    made.add_argument("-p", "--package", type=Path, nargs="+", required=True, metavar="DIR", help="of demo checkpoints")
    made.add_argument("--report-dir", type=Path, required=True, metavar="DIR", help="a folder for the logs")
    made.add_argument("--full", type=Path, metavar="CHECKPOINT", help="of a published size, with a tokenizer")
    made.add_argument("--full-package", type=Path, nargs="+", default=[], metavar="DIR", help="made of it")
    made.add_argument("--at-once", type=flags.whole_number(1), default=4, metavar="N", help="checks at a time; default 4")
    made.add_argument("--seconds", type=float, default=200.0, metavar="S", help="for a step; default 200")
    made.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help=", ".join(STEPS))
    made.add_argument("--provider", default="CUDAExecutionProvider", metavar="NAME", help="of ONNX Runtime")
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="of PyTorch; cpu rehearses")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    given.report_dir, given.full = given.report_dir.resolve(), given.full and given.full.resolve()
    given.package, given.full_package = ([each.resolve() for each in part] for part in (given.package, given.full_package))
    for package in [*given.package, *given.full_package]:
        if not (package / "manifest.json").is_file():
            raise UsageError(f"{package} is no package", "a folder with a manifest.json", "name what an export wrote")
    given.report_dir.mkdir(parents=True, exist_ok=True)
    asked = [step for step in steps(given) if step.kind in given.only]

    def call(step: Step) -> int:
        return run(step, given.report_dir, given.provider, given.seconds)

    with ThreadPoolExecutor(given.at_once) as pool:
        done = list(pool.map(lambda step: timed(step, call), (step for step in asked if step.kind in TOGETHER)))
    done += [timed(step, call) for step in asked if step.kind not in TOGETHER]
    rows = [f"| {step.name} | {'cut off' if code == CUT_OFF else code} | {taken:.0f} |" for step, code, taken in done]
    (given.report_dir / "steps.md").write_text("\n".join(["| step | exit code | seconds |", "|---|---|---|", *rows, ""]))
    ended = all(code in (ExitCode.OK, ExitCode.ENVIRONMENT) for _, code, _ in done)
    return int(ExitCode.OK if ended else ExitCode.PARITY_FAILED)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.on_a_gpu", arguments)


if __name__ == "__main__":
    sys.exit(main())
