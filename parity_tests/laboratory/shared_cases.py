"""Lay every case of a folder of cases over a demo checkpoint, and print what reading it gives.

    python -m parity_tests.laboratory.shared_cases --cases DIR

``DIR/field`` holds folders whose README.txt names the checkpoint they are laid over (``base: copy CHECKPOINT to DIR``; one
without is whole); ``DIR/hostile`` single files, which `PLACES` puts where they belong. A line says what was read or how it
was refused, in how many processor seconds, and by how much the peak of memory grew; exit code 5 where an error is none of
ours, a case takes more than 5 s, or more than 200 MB.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from export.checkpoint.opened import open_folder
from export.source.hub import DEMO_FOLDER
from parity_tests.laboratory.fuzz.worker import forget_peak, peak_bytes
from runtime_py import tokenizer
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser
from runtime_py.errors import EdgeproofError, ExitCode, InternalError

PLACES = {
    "added_tokens_*.json": "added_tokens.json",
    "config_*.json": "config.json",
    "index_*.json": "model.safetensors.index.json",
    "legacy_*.bin": "pytorch_model.bin",
    "pickle_*.bin": "pytorch_model.bin",
    "st_*.safetensors": "model.safetensors",
    "tokenizer_model_*.model": "tokenizer.model",
    "tokenizer_padding_*.json": "tokenizer.json",
}
"""Where a hostile file is put in a copy of minicpm-v; the others are for packages (hostile_package_test.py)."""

BASE = re.compile(r"^base: copy export/demo/checkpoints/([\w.-]+) ", re.MULTILINE)
MOST_SECONDS, MOST_BYTES = 5.0, 200 << 20


def placed(cases: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Every case's name and its checkpoint, which is there until the next one is asked for."""
    for case in sorted((cases / "field").iterdir()):
        if case.is_dir():
            base = BASE.search((case / "README.txt").read_text(encoding="utf-8"))
            folder = _fresh(scratch, base.group(1) if base else None)
            shutil.copytree(case, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.txt"))
            yield case.name, folder
    for case in sorted((cases / "hostile").iterdir()):
        place = next((place for form, place in PLACES.items() if fnmatch.fnmatch(case.name, form)), None)
        if place is None:
            continue
        folder = _fresh(scratch, "minicpm-v")
        if not place.endswith("tokens.json") and "config" not in place:
            for other in folder.glob("tokenizer.model" if "tokenizer" in place else "model.safetensors"):
                other.unlink()
        (folder / place).write_bytes(case.read_bytes())
        yield case.name, folder


def _fresh(scratch: Path, base: str | None) -> Path:
    folder = scratch / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    if base is None:
        folder.mkdir()
    else:
        shutil.copytree(DEMO_FOLDER / base, folder)
    return folder


def reading(folder: Path) -> tuple[str, bool]:
    """What came of it in a line, and whether that is a plan or an error of ours."""
    try:
        opened = open_folder(folder)
        notes = opened.check_tokenizer()
        spec = opened.spec
        place = opened.tokenizer_folder()
        words = len(tokenizer.load(place).encode("Where? <loc_1> <im_start> ok, and a longer text")) if place else 0
    except InternalError as error:
        return f"internal error: {error.what}", False
    except EdgeproofError as error:
        return f"refused ({int(error.exit_code)}): {error.what}".replace(str(folder), "DIR"), True
    except Exception as error:  # the very thing that is looked for
        return f"{type(error).__name__}: {error}", False
    facts = [f"{opened.family.name}: theta {spec.decoder.rope.theta:g}", f"stop ids {spec.generation['stop_ids']}"]
    facts += [f"max_pixels {spec.runtime['max_pixels']}"] if "max_pixels" in spec.runtime else []
    return "; ".join((*facts, f"{words} ids", *notes)), True


def parser(prog: str) -> Parser:
    """The flags."""
    made = Parser(prog, "Lay every case of a folder over a demo checkpoint, and print what reading it gives.")
    made.add_argument("--cases", type=Path, required=True, metavar="DIR", help="holds field and hostile")
    flags.json_file(made, "write the lines here")
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    open_folder(DEMO_FOLDER / "minicpm-v").check_tokenizer()  # so that the libraries' own memory and time count for no case
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in placed(options.cases, Path(scratch)):
            forget_peak()
            before, began = peak_bytes(), time.process_time()
            told, ours = reading(folder)
            seconds, grown = time.process_time() - began, peak_bytes() - before
            wrong += not ours or seconds > MOST_SECONDS or grown > MOST_BYTES
            rows.append({"case": name, "told": told, "seconds": round(seconds, 2), "grown_mb": grown >> 20})
            console.out(f"{name}: {told[:200]} ({seconds:.2f} s, {grown >> 20} MB)")
    console.out(f"{len(rows)} cases, {wrong} wrong")
    if options.json_file:
        options.json_file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(ExitCode.PARITY_FAILED if wrong else ExitCode.OK)


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m parity_tests.laboratory.shared_cases", arguments)


if __name__ == "__main__":
    sys.exit(main())
