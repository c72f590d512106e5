"""A backend's name is written where the backend lives; everything else asks its record.

The homes of names: the runtime's records and the modules beside them, and each backend's own folder of the export.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from parity_tests.import_directions_test import LABORATORY, ROOT, modules, offenders
from runtime_py.backends.records import BUILT_IN
from targets.registry import targets

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


def compared(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is compared with something, looked up in a collection or a key of a mapping."""
    for node in ast.walk(tree):
        sides: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            sides = list(node.keys)
        for side in sides:
            for part in side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else (side,):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def test_no_target_is_told_apart_by_its_name() -> None:
    """``cpu`` is the name of a device too, and left out; the compiler's table is of TVM's targets."""
    names = set(targets()) - {"cpu"}
    homes = (
        LABORATORY,
        "targets/",
        *(f"export/backends/{folder}/record.py" for folder in FOLDERS),
        "export/backends/mlc/library.py",
    )
    told = [
        (f"{name}:{line}", text)
        for path in modules()
        if not (name := path.relative_to(ROOT).as_posix()).startswith(homes)
        for line, text in compared(ast.parse(path.read_text(encoding="utf-8")))
        if text in names
    ]
    assert told == []


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
    tree = ast.parse('a == "ios" or a in ("x", "y")\nT = {"android": 1, **b}\nprint("cpu")\n')
    assert sorted(text for _, text in compared(tree)) == ["android", "ios", "x", "y"]
