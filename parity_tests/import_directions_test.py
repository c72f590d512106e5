"""Who may import whom, read from the source of every module; docs/design.md states the rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime_py", "targets", "export", "calibrate", "parity_tests")
"""Each may import those before it and none behind it, in functions too; a ``__main__.py`` is free."""
PRODUCT = ("runtime_py/", "targets/", "export/", "calibrate/", "parity_tests/")
LABORATORY = "parity_tests/laboratory/"
HEAVY = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tvm",
    "tvm_ffi",
    "transformers",
)
MAY_BE_HEAVY = (
    "export/modules/",
    "export/backends/",
    "export/graphs/",
    "export/passes/",
    "export/processor/",
    "export/compilation/",
    "export/demo/",
    "parity_tests/",
    "runtime_py/backends/",
)
"""Where heavy libraries may be imported at module level; the backend.py of each export backend may not."""
MODULES, BLOCKS = "export/families/*/modules.py", "export/families/*/blocks.py"
"""A family's own PyTorch modules and Relax blocks, which its specs name and nothing imports; blocks use the backend's."""


def modules() -> list[Path]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    tests = ("_test.py", "conftest.py")
    return [path for path in sorted(paths) if not path.name.endswith(tests) and not path.name.startswith("test_")]


def imported(path: Path, everywhere: bool) -> Iterator[str]:
    """Absolute module names that a file imports; at module level alone unless ``everywhere``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else _module_level(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run on import: not inside functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _module_level(node)


def offenders(folders: tuple[str, ...], forbidden: tuple[str, ...], everywhere: bool) -> list[str]:
    rows = []
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(folders) or (name.startswith(LABORATORY) and folders == PRODUCT):
            continue
        for module in imported(path, everywhere):
            if any(module == one or module.startswith(one + ".") for one in forbidden):
                rows.append(f"{name} imports {module}")
    return rows


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_stand_on_those_before_them(package: str) -> None:
    """Imports inside functions count; none goes up."""
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    backward = [row for row in offenders((f"{package}/",), above, everywhere=True) if "/__main__.py imports" not in row]
    assert backward == []


@pytest.mark.parametrize(
    ("folders", "forbidden", "everywhere"),
    [
        (("runtime_py/", "targets/"), ("torch", "transformers"), True),
        (("targets/", "export/quantisation/"), HEAVY, False),
        (("export/families/",), ("export.backends",), True),
        (("export/modules/",), ("export.backends", "export.families"), True),
        (("export/backends/",), ("export.families",), True),
        (PRODUCT, ("parity_tests.laboratory",), True),
    ],
)
def test_lower_packages_import_no_higher_ones(
    folders: tuple[str, ...], forbidden: tuple[str, ...], everywhere: bool
) -> None:
    found = offenders(folders, forbidden, everywhere)
    assert [row for row in found if not fnmatch(row, f"{BLOCKS} imports export.backends.mlc.blocks.*")] == []


def test_heavy_libraries_are_imported_inside_functions() -> None:
    light = [path.relative_to(ROOT).as_posix() for path in modules()]
    light = [name for name in light if not name.startswith(MAY_BE_HEAVY) or name.endswith(("/backend.py", "/record.py"))]
    light = [name for name in light if not fnmatch(name, MODULES) and not fnmatch(name, BLOCKS)]
    heavy = offenders(tuple(light), HEAVY, everywhere=False)
    assert heavy == []


def test_the_reader_sees_what_it_should() -> None:
    tree = ast.parse("import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass C:\n    import d\n")
    names = [alias.name for node in _module_level(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert names == ["a", "d"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_of_a_package_is_seen_at_one_look(package: str) -> None:
    """At most twelve files, tests among them; more are in rooms (docs/design.md)."""
    assert len(list((ROOT / package).glob("*.py"))) <= 12
