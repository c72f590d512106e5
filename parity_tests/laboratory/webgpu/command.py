"""The command line of the WebGPU rung: families by stages, each cell the worst error of a graph's run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.contracts import STAGES
from runtime_py.errors import EdgeproofError, ExitCode, MachineError, UsageError

if TYPE_CHECKING:
    from parity_tests.laboratory.webgpu.kernels import Checked, Stage
    from runtime_py.backends.webgpu import WebGpu

GOLDENS = Path(__file__).parents[2] / "goldens"

EXAMPLES = """\
examples:
  python -m parity_tests.laboratory.webgpu
  python -m parity_tests.laboratory.webgpu out/minicpm-v out/xverse-v

Without a package every golden checkpoint is exported for cpu at fp32. On a machine without a GPU: docs/targets/webgpu.md.
exit code 0 when every graph is within the limits, 5 when one is not, 7 when the provider does not start
"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Hold the WebGPU provider's kernels against the processor's, on every graph of packages.", EXAMPLES)
    made.add_argument("packages", nargs="*", type=Path, metavar="PACKAGE", help="folders that export wrote")
    made.add_argument("--case", action="append", metavar="NAME", help="this golden checkpoint; repeatable; default all")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    import onnxruntime

    from runtime_py.backends.webgpu import webgpu

    try:
        provider = webgpu(onnxruntime)
    except MachineError as error:
        console.out(f"not run: {error}")
        return ExitCode.ENVIRONMENT
    console.out("\n".join(about(provider, onnxruntime.__version__)) + "\n")
    with tempfile.TemporaryDirectory(prefix="edgeproof-webgpu-") as scratch:
        results = [_checked(package) for package in given.packages or _goldens(Path(scratch), given.case)]
    console.out(table(results))
    return ExitCode.OK if all(result.passed for result in results) else ExitCode.PARITY_FAILED


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.webgpu", arguments)


def _goldens(scratch: Path, names: Sequence[str] | None) -> list[Path]:
    """The golden checkpoints as packages for cpu at fp32; those of the names, where any are given.

    Raises:
        UsageError: there is no such golden.
    """
    from parity_tests.golden.golden import export_case

    cases = [folder for folder in sorted(GOLDENS.iterdir()) if (folder / "config.json").is_file()]
    unknown = sorted(set(names or ()) - {case.name for case in cases})
    if unknown:
        raise UsageError(f"no golden {', '.join(unknown)}", ", ".join(case.name for case in cases), "correct --case")
    cases = [case for case in cases if not names or case.name in names]
    return [export_case(case, "cpu", "fp32", scratch / case.name) for case in cases]


def _checked(package: Path) -> Checked:
    from parity_tests.laboratory.webgpu.kernels import Checked, check

    try:
        return check(package)
    except EdgeproofError as error:
        return Checked(package.name, {}, False, error.what)


def about(provider: WebGpu, version: str) -> list[str]:
    """What the provider can do on this device, and how far its own attention is off."""
    lines = [f"ONNX Runtime {version}; float16 in shaders: {'yes' if provider.half else 'no'}", ""]
    lines += ["| attention, the provider's own | worst error |", "|---|---|"]
    lines += [f"| {name} | {error:.1e} |" for name, error in provider.attention_errors.items()]
    lines += [
        "",
        "| the provider's kernel over all rows, written down with | differs from the provider's by |",
        "|---|---|",
    ]
    lines += [f"| {faults} | {difference:.1e} |" for faults, difference in _as_written(provider)]
    used = "its own attention" if provider.attention_is_right else "attention as two products and a softmax"
    return [*lines, "", f"Below: {used}."]


def _as_written(provider: WebGpu) -> list[tuple[str, float]]:
    """`written_kernel.differences` of what the provider gives; no row where it fails."""
    from parity_tests.laboratory.webgpu.written_kernel import differences
    from runtime_py.backends.attention_trial import trials

    trial = trials()[0]
    try:
        return differences(trial, provider.run(trial.model, trial.feeds))
    except Exception:  # whatever onnxruntime raises; the table above has it as an infinite error
        return []


def table(results: Sequence[Checked]) -> str:
    """Packages by stages as Markdown: worst error, nodes on the GPU + nodes on the processor."""
    lines = ["| package | " + " | ".join(STAGES) + " | tokens | verdict |", "|" + "---|" * (len(STAGES) + 3)]
    for result in results:
        cells = [_cell(result.stages.get(stage)) for stage in STAGES]
        tokens = "" if result.not_run else "equal" if result.tokens_equal else "DIFFER"
        verdict = "pass" if result.passed else f"FAIL: {result.not_run}" if result.not_run else "FAIL"
        lines.append(f"| {result.name} | {' | '.join(cells)} | {tokens} | {verdict} |")
    away = sorted({operator for result in results for stage in result.stages.values() for operator in stage.elsewhere})
    return "\n".join([*lines, "", "On the processor: " + (", ".join(away) or "nothing") + "."])


def _cell(stage: Stage | None) -> str:
    if stage is None:
        return "not run"
    worst = "not compared" if stage.worst is None else f"{stage.worst:.1e}"
    return f"{worst}{'' if stage.passed else ' FAIL'} ({stage.on_gpu} + {sum(stage.elsewhere.values())})"
