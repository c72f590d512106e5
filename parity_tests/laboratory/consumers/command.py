"""The command line of the consumers' table: families by tools, each cell a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from export.backends.onnx.consumers.held import Tool
from parity_tests.laboratory.consumers import genai, graphs, own, transformers_js
from parity_tests.laboratory.consumers.outcome import FAILS, NOT_RUN, compared, first_line, ids_compared
from parity_tests.laboratory.consumers.question import PICTURE, Question, drawn_texts, our_ids, questions
from runtime_py.backends.records import ONNX
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode
from runtime_py.package.reading import read

SAMPLE = Path(__file__).parents[3] / "export" / "demo" / "samples" / "shapes.png"
COLUMNS = ("package", "onnx.checker", "onnxslim", "onnxruntime-genai", "transformers.js", "our runtime elsewhere")

EXAMPLES = """\
examples:
  python -m parity_tests.laboratory.consumers out/minicpm-v out/xverse-v
  python -m parity_tests.laboratory.consumers out/* --node-modules /tmp/js --python /tmp/oldest/bin/python

A tool that is not installed is not run (pip install onnxslim onnxruntime-genai; npm install @huggingface/transformers).
exit code 0 when every tool that can hold a package gives our tokens and ids, 5 when one does not
"""


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Open packages with the field's tools, ask, and compare tokens with our runtime's.", EXAMPLES)
    made.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE", help="folders that export wrote")
    made.add_argument("--picture", type=Path, default=SAMPLE, metavar="FILE", help="what is asked about")
    made.add_argument("--node-modules", type=Path, metavar="DIR", help="folder with node_modules/@huggingface/transformers")
    made.add_argument("--python", type=Path, metavar="EXE", help="another Python, whose onnxruntime runs the package too")
    flags.talk(made)
    return made


def _run(given: argparse.Namespace) -> int:
    rows = [(folder.name, *_cells(folder, given.picture, given.node_modules, given.python)) for folder in given.packages]
    console.out(table([COLUMNS, *rows]))
    return ExitCode.PARITY_FAILED if any(FAILS in cell for row in rows for cell in row) else ExitCode.OK


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.consumers", arguments)


def _cells(folder: Path, picture: Path, modules: Path | None, python: Path | None) -> list[str]:
    asked = questions(folder, picture)
    there = f"{NOT_RUN}: no --python" if python is None else _elsewhere(python, folder, picture, asked)
    return [*_tools(folder, picture, modules, asked), there]


def _tools(folder: Path, picture: Path, modules: Path | None, asked: list[Question]) -> list[str]:
    kept = ONNX.block(read(folder).manifest).get("kept_from_tools_by", {})
    checked = graphs.checker(folder)
    cells = [checked if checked.startswith("ok") else f"{FAILS}: {checked}"]
    if graphs.has_onnxslim():
        cells.append(compared(asked, lambda: graphs.slimmed_answers(folder, picture)))
    else:
        cells.append(f"{NOT_RUN}: not installed")
    drawn = drawn_texts(folder)
    ours = our_ids(folder, drawn)
    if genai.version() is None:
        cells.append(f"{NOT_RUN}: not installed")
    elif named := kept.get(Tool.GENAI, ()):
        cells.append(f"cannot hold it: {'; '.join(named)}")
    else:
        answers = compared(asked, lambda: genai.answers(folder, asked))
        cells.append(f"{answers}; {ids_compared(ours, lambda: genai.ids(folder, drawn))}")
    absent = transformers_js.missing(modules)
    if absent or modules is None:
        return [*cells, f"{NOT_RUN}: {absent}"]
    ids = ids_compared(ours, lambda: transformers_js.ids(folder, drawn, modules))
    if named := kept.get(Tool.TRANSFORMERS_JS, ()):
        return [*cells, f"cannot hold it: {'; '.join(named)}; {ids}"]
    cell = compared(asked, lambda: transformers_js.answers(folder, asked, modules))
    if (folder / "preprocessor_config.json").is_file():
        pictured = [question for question in asked if question.kind == PICTURE]
        own = compared(pictured, lambda: transformers_js.own_answer(folder, asked, picture, modules))
        cell += f"; by its own processor: {own}"
    return [*cells, f"{cell}; {ids}"]


def _elsewhere(python: Path, folder: Path, picture: Path, asked: Sequence[Question]) -> str:
    """Whether our runtime in another Python, with another onnxruntime, gives the same tokens."""
    try:
        there = own.elsewhere(python, folder, picture)
    except Exception as error:  # as in `compared`
        return f"{FAILS}: {first_line(error)}"
    return f"onnxruntime {there.version}: {compared(asked, lambda: there.answers)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown, the first being the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
