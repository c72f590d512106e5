"""A backend's name is written where the backend lives; everything else asks its record.

The homes of names: the runtime's records and the modules beside them, and each backend's own folder of the export.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from parity_tests.import_directions_test import ROOT, modules, offenders
from runtime_py.backends.records import BUILT_IN

NAMES = {name for record in BUILT_IN for name in (record.name, record.runtime_name)}
FOLDERS = tuple(record.name for record in BUILT_IN)
HOMES = ("runtime_py/backends/", *(f"export/backends/{folder}/" for folder in FOLDERS))


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string in the code that is no docstring."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def written(folders: tuple[str, ...] = (), homes: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Place and text of every string of the product in ``folders`` and outside ``homes``."""
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(folders or ("",)) and not name.startswith(homes or ("\0",)):
            for line, text in strings(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{name}:{line}", text


def test_no_backend_is_named_outside_its_home() -> None:
    assert [(place, text) for place, text in written(homes=HOMES) if text in NAMES] == []


def test_every_home_names_its_backend() -> None:
    assert {text for _, text in written(folders=("runtime_py/backends/records.py",)) if text in NAMES} == NAMES


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_backend_imports_another(folder: str) -> None:
    others = tuple(f"export.backends.{other}" for other in FOLDERS if other != folder)
    assert offenders((f"export/backends/{folder}/",), others, everywhere=True) == []


def test_backends_name_no_family_and_no_processor_to_import() -> None:
    reached = ("export.families", "runtime_py.preprocess", "families.")
    assert [(place, text) for place, text in written(folders=("export/backends/",)) if text.startswith(reached)] == []


def test_the_reader_sees_strings_and_skips_docstrings() -> None:
    tree = ast.parse('"""onnx"""\nX = "onnx"\n"""onnx"""\ndef f(a):\n    """onnx"""\n    return a == "ort"\n')
    assert [text for _, text in strings(tree)] == ["onnx", "ort"]
