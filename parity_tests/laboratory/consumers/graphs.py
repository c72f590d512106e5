"""A package's graphs under the field's checker and one of its optimisers."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import onnx

from parity_tests.laboratory.consumers.outcome import first_line
from parity_tests.laboratory.consumers.question import questions
from runtime_py.backends.records import ONNX
from runtime_py.package.files import rows_of


def checker(folder: Path) -> str:
    """What onnx.checker says of every graph, shapes inferred and compared; ``ok`` and how many."""
    graphs = sorted(folder.rglob("*.onnx"))
    for path in graphs:
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # whatever the checker or its parser raises
            return f"{path.name}: {first_line(error)}"
    return f"ok ({len(graphs)} graphs)"


def has_onnxslim() -> bool:
    """Whether onnxslim is installed."""
    try:
        import onnxslim  # noqa: F401
    except ImportError:
        return False
    return True


def slimmed_answers(folder: Path, picture: Path) -> list[tuple[int, ...]]:
    """What our runtime answers from a copy of a package whose stages were all rewritten by onnxslim.

    Raises:
        RuntimeError, ValueError: onnxslim cannot rewrite a graph.
        EdgeproofError: the runtime refuses what it wrote.
    """
    import onnxslim

    with tempfile.TemporaryDirectory(prefix="edgeproof-slim-") as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch) / folder.name))
        path = copy / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for entry in ONNX.block(manifest)["stages"].values():
            with redirect_stdout(io.StringIO()):
                onnxslim.slim(str(copy / entry["file"]), str(copy / entry["file"]), save_as_external_data=False)
        path.unlink()
        manifest["files"] = rows_of(copy)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return [question.answer for question in questions(copy, picture)]
