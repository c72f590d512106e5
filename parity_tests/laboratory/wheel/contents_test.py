"""What a wheel may hold, on archives made here; and what the product imports of what a wheel leaves out."""

from __future__ import annotations

import ast
import shutil
import zipfile
from pathlib import Path

from parity_tests.laboratory.wheel.contents import DEMOS, PACKAGES, REGISTRATION, faults

ROOT = Path(__file__).parents[3]
LEFT_OUT = ("parity_tests.laboratory", "parity_tests.goldens", "parity_tests.end_to_end", "parity_tests.conftest")


def wheel(folder: Path, repository: Path, *more: str, without: str = "") -> Path:
    """An archive with the demos of a repository, the licence, and other empty files."""
    path = folder / "edgeproof-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("edgeproof-0.dist-info/licenses/LICENSE", "text")
        archive.writestr(REGISTRATION, "REGISTER_COMMANDS = []")
        for file in (repository / DEMOS).rglob("*"):
            name = file.relative_to(repository).as_posix()
            if file.is_file() and name != without:
                archive.write(file, name)
        for name in more:
            archive.writestr(name, "")
    return path


def repository(folder: Path) -> Path:
    """A checkout with one demo in a folder with a dot and weights in a pickle."""
    demo = folder / DEMOS / "awaker2.5-vl"
    demo.mkdir(parents=True)
    for name in ("LICENSE", "pytorch_model.bin"):
        shutil.copy(ROOT / DEMOS / "awaker2.5-vl" / name, demo)
    return folder


def test_the_product_and_its_demos_are_right(tmp_path: Path) -> None:
    made = repository(tmp_path / "repository")
    assert list(faults(wheel(tmp_path, made, "export/cli.py", "runtime_py/tests_of_time.py"), made)) == []


def test_pages_that_messages_name_come_along(tmp_path: Path) -> None:
    made = repository(tmp_path / "repository")
    (made / "docs" / "targets").mkdir(parents=True)
    (made / "docs" / "targets" / "cpu.md").touch()
    assert list(faults(wheel(tmp_path, made), made)) == ["the page docs/targets/cpu.md is missing"]
    assert list(faults(wheel(tmp_path, made, "runtime_py/docs/targets/cpu.md"), made)) == []


def test_what_is_too_much_or_missing_is_named(tmp_path: Path) -> None:
    made = repository(tmp_path / "repository")
    extra = ("export/plan_test.py", "parity_tests/conftest.py", "parity_tests/goldens/a/outputs.npz", "optimum/cli.py")
    weights = f"{DEMOS}/awaker2.5-vl/pytorch_model.bin"
    assert list(faults(wheel(tmp_path, made, *extra, without=weights), made)) == [
        "export/plan_test.py is no product",
        "parity_tests/conftest.py is no product",
        "parity_tests/goldens/a/outputs.npz is no product",
        "optimum/cli.py lies outside the five packages",
        f"{weights} of the demos is missing or cut",
    ]


def test_the_product_imports_nothing_that_a_wheel_leaves_out() -> None:
    product = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not path.name.endswith(("_test.py", "conftest.py")) and not path.name.startswith("test_")
        if path.relative_to(ROOT).parts[:2] not in {("parity_tests", "laboratory"), ("parity_tests", "end_to_end")}
    ]
    assert len(product) > 200
    imports = []
    for path in product:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            imports += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.startswith(LEFT_OUT)]
            imports += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.endswith("_test")]
    assert imports == []
