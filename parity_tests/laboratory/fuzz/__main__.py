"""``python -m parity_tests.laboratory.fuzz``: strange files for every reader, counted.

    python -m parity_tests.laboratory.fuzz --inputs 20000 [--seed 0] [--subjects safetensors,pickle] [--json-file FILE]

Exit code 0 when every file was refused with one clear error or read as the published library reads it, 5 otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

from parity_tests.laboratory.fuzz.package_subjects import SUBJECTS
from parity_tests.laboratory.fuzz.worker import Findings
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

BATCH = 500
"""Inputs of one process."""

PATIENCE_SECONDS = 1800
"""For one batch on a busy machine; a reader that waits for ever ends there and counts as a hang."""

MOST_GROWTH = 200 << 20


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Files as strangers forge them, for every reader; count what becomes of them.")
    made.add_argument("--inputs", type=int, default=2200, metavar="N", help="of all subjects together (default 2200)")
    made.add_argument("--subjects", default=",".join(SUBJECTS), metavar="LIST", help="of: " + ", ".join(SUBJECTS))
    flags.seed(made, "equal seeds make equal files")
    flags.json_file(made, "write counts and examples here")
    flags.talk(made)
    return made


def batch(name: str, seed: int, first: int, count: int) -> Findings:
    """Read a batch in a process of its own; one that dies at an input goes on behind it in another."""
    findings, position, end = Findings(), first, first + count
    while position < end:
        command = [
            sys.executable,
            "-m",
            "parity_tests.laboratory.fuzz.worker",
            name,
            str(seed),
            str(position),
            str(end - position),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
            output, how = done.stdout, f"the process ended with {done.returncode}: {done.stderr[-1000:]}"
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else str(error.stdout or "")
            how = f"no end after {PATIENCE_SECONDS} s"
            findings.hangs += 1
        rows = [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]
        if rows and "findings" in rows[-1]:
            value = rows[-1]["findings"]
            findings.add(
                Findings(**{**value, "kinds": Counter(value["kinds"]), "examples": [tuple(e) for e in value["examples"]]})
            )
            return findings
        reached = rows[-1]["input"] if rows else position
        findings.crashes += 1
        findings.examples.append((reached, how))
        if reached > position:
            findings.add(batch(name, seed, position, reached - position))
        position = reached + 1
    return findings


def _run(options: argparse.Namespace) -> int:
    names = options.subjects.split(",")
    unknown = sorted(set(names) - set(SUBJECTS))
    if unknown or options.inputs < len(names):
        raise UsageError(f"subjects {options.subjects}, {options.inputs} inputs", ", ".join(SUBJECTS), "correct them")
    each, seed = options.inputs // len(names), flags.seed_number(options.seed)
    results: dict[str, Findings] = {}
    console.out(f"{'subject':14}{'inputs':>8}{'refused':>9}{'accepted':>9}{'tracebacks':>11}{'different':>10}{'hangs':>6}"
                f"{'crashes':>8}{'foreign':>8}{'grown MB':>9}{'slowest s':>10}")  # fmt: skip
    for name in names:
        findings = Findings()
        for first in range(0, each, BATCH):
            findings.add(batch(name, seed, first, min(BATCH, each - first)))
        results[name] = findings
        console.out(row(name, findings))
    total = Findings()
    for findings in results.values():
        total.add(findings)
    console.out(row("all", total))
    for name, findings in results.items():
        for number, problem in findings.examples[:5]:
            console.say(f"{name} {number}: {problem}")
    if options.json_file:
        value = {"seed": seed, "subjects": {name: findings.to_json() for name, findings in results.items()}}
        options.json_file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    sound = total.faults == 0 and total.grown <= MOST_GROWTH
    return int(ExitCode.OK if sound else ExitCode.PARITY_FAILED)


def row(name: str, findings: Findings) -> str:
    """A line of the table."""
    return (
        f"{name:14}{findings.total:8}{findings.refused:9}{findings.accepted:9}{findings.tracebacks:11}{findings.different:10}{findings.hangs:6}"
        f"{findings.crashes:8}{findings.foreign:8}{findings.grown / 1e6:9.0f}{findings.slowest:10.2f}"
    )


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.fuzz", arguments)


if __name__ == "__main__":
    sys.exit(main())
