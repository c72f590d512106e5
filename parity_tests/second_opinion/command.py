"""``python -m parity_tests --second-opinion``: which checkpoint, the parts asked, a table and an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.command import model_flags
from runtime_py.command import console
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from parity_tests.judging.standards import Table
    from parity_tests.second_opinion.opinion import Opinion

SCHEMA = 1


def add_flags(made: Parser) -> None:
    """Which checkpoint is asked about."""
    group = made.add_argument_group("--second-opinion")
    group.add_argument("--checkpoint", type=Path, metavar="DIR", help="a checkpoint folder")
    for flag in model_flags.MODEL:
        group.add_argument(flag.flag, metavar=flag.value, help=flag.meaning)


def run(options: argparse.Namespace, table: Table | None) -> int:
    """Ask, print, write the JSON that was asked for."""
    from parity_tests.judging.judge import Verdict
    from parity_tests.report import json_report
    from parity_tests.second_opinion.parts import second_opinion, verdict_of

    folder = folder_of(options)
    said = second_opinion(folder, table)
    verdict = verdict_of(said)
    value = to_json(folder, said, str(verdict))
    if options.json:
        console.out_json(value)
    else:
        console.out("\n".join([*lines(said, bool(options.verbose)), f"verdict: {verdict}"]))
    if options.json_file is not None:
        json_report.write(options.json_file, value)
    if options.report_dir is not None:
        from parity_tests.report import text_file

        json_report.write(options.report_dir / "second_opinion.json", value)
        text_file.write(options.report_dir / "second_opinion.md", markdown(said, str(verdict)))
    if verdict is Verdict.NOT_RUN:
        console.say("nothing was compared; see the lines `not run`")
        return int(ExitCode.ENVIRONMENT)
    return int(ExitCode.OK if verdict is Verdict.PASS else ExitCode.PARITY_FAILED)


def folder_of(options: argparse.Namespace) -> Path:
    """The checkpoint's folder, downloaded where it is a hub id.

    Raises:
        UsageError: none is named, or two.
    """
    from export.source.hub import resolve

    if (options.checkpoint is None) == (options.model is None):
        raise UsageError(
            "--second-opinion with " + ("no checkpoint" if options.model is None else "--checkpoint and --model"),
            "one of --checkpoint DIR and --model MODEL",
            "name the checkpoint to ask about",
        )
    if options.checkpoint is not None:
        if not options.checkpoint.is_dir():
            raise UsageError(f"{options.checkpoint} is no folder", "a checkpoint folder", "check the path")
        return Path(options.checkpoint)
    return resolve(options.model, options.weights, options.revision).folder


def lines(said: list[Opinion], every: bool) -> list[str]:
    """A table; findings of a part that agree are one row, the worst of them, unless ``every`` is asked for."""
    rows = table_rows(said, every)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows]


def markdown(said: list[Opinion], verdict: str) -> str:
    """Every finding as a table, for a job's summary."""
    head, *rows = ["|".join(("", *(text.replace("|", "\\|") for text in row), "")) for row in table_rows(said, True)]
    return "\n".join([f"# Second opinion: {verdict}", "", head, "|---" * 5 + "|", *rows, ""])


def table_rows(said: list[Opinion], every: bool) -> list[tuple[str, str, str, str, str]]:
    """Head and rows: stage, what was asked, against what, worst error, verdict."""
    rows = [("stage", "asked", "against", "worst error", "verdict")]
    for opinion, count in [(one, 1) for one in said] if every else worst(said):
        figure = f"{opinion.metric} {opinion.error:.2g} of {opinion.limit:g}" if opinion.metric else "-"
        what = f"{opinion.part}: {opinion.what}" if opinion.against and opinion.metric else opinion.part
        why = f" ({opinion.why})" if opinion.why else ""
        more = f" and {count - 1} more" if count > 1 else ""
        rows.append((opinion.stage, what + more, opinion.against or "-", figure, f"{opinion.verdict}{why}"))
    return rows


def worst(said: list[Opinion]) -> list[tuple[Opinion, int]]:
    """Of each part and metric the finding furthest out, and how many agree; all that failed or were not run."""
    from parity_tests.judging.judge import Verdict

    kept: dict[object, tuple[Opinion, int]] = {}
    for number, opinion in enumerate(said):
        key: object = (opinion.part, opinion.metric) if opinion.verdict is Verdict.PASS else number
        other, count = kept.get(key, (opinion, 0))
        kept[key] = (max(other, opinion, key=lambda one: one.error), count + 1)
    return list(kept.values())


def to_json(folder: Path, said: list[Opinion], verdict: str) -> dict[str, Any]:
    """The result for programs; docs/parity_reports.md describes it."""
    first = next((f"{one.part}: {one.what}: {one.why}" for one in said if str(one.verdict) == "fail"), None)
    return {
        "schema": SCHEMA,
        "checkpoint": folder.resolve().name,
        "verdict": verdict,
        "first_failure": first,
        "opinions": [opinion.to_json() for opinion in said],
    }
