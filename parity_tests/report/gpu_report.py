"""What a GPU check found, as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from parity_tests.report.text_file import write as write_text


@dataclass(frozen=True)
class Row:
    """One array of one runner; ``status`` is ``pass``, ``fail``, ``reported`` or ``not run``, with the reason."""

    runner: str
    question: str
    probe: str
    status: str
    max_abs: float | None = None
    cosine: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Time:
    """Median milliseconds of one call, arrays in and out of host memory, beside PyTorch eager in float16."""

    runner: str
    call: str
    status: str
    median_ms: float | None = None
    eager_ms: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything one run found."""

    package: str
    device: str
    rows: tuple[Row, ...]
    times: tuple[Time, ...]
    environment: Mapping[str, str]
    exit_code: int


def markdown(report: Report) -> str:
    """The report as Markdown tables."""

    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    lines = [f"# GPU check of {report.package}", "", f"Device: {report.device}", ""]
    lines += ["| runner | question | array | status | max abs | cosine | remark |", "|---|---|---|---|---|---|---|"]
    for row in report.rows:
        figures = (figure(row.max_abs), figure(row.cosine))
        lines.append(_table_row(row.runner, row.question, row.probe, row.status, *figures, row.reason))
    lines += ["", "Median milliseconds, arrays in and out of host memory:", ""]
    lines += ["| runner | call | status | median | PyTorch eager fp16 | remark |", "|---|---|---|---|---|---|"]
    for entry in report.times:
        figures = (figure(entry.median_ms), figure(entry.eager_ms))
        lines.append(_table_row(entry.runner, entry.call, entry.status, *figures, entry.reason))
    lines += ["", "Made with:", "", *(f"- {name} {version}" for name, version in report.environment.items()), ""]
    return "\n".join(lines)


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in cells) + " |"


def write(report: Report, folder: Path) -> None:
    """Write gpu_check.json and gpu_check.md."""
    write_text(folder / "gpu_check.json", json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "gpu_check.md", markdown(report))
