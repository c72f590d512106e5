"""Packages of the golden checkpoints, exported once a session and shared by the tests that need one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens"

ExportedPackage = Callable[[str, str, str], Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedPackage:
    """A function (case, target, precision) -> package folder, which must not be written to."""
    made: dict[tuple[str, str, str], Path] = {}

    def export(case: str, target: str, precision: str) -> Path:
        from parity_tests.golden.golden import export_case

        key = (case, target, precision)
        if key not in made:
            folder = tmp_path_factory.mktemp("packages") / f"{case}-{target}-{precision}"
            made[key] = export_case(GOLDENS / case, target, precision, folder)
        return made[key]

    return export


@pytest.fixture
def copied(exported: ExportedPackage, tmp_path: Path) -> ExportedPackage:
    """As `exported`, but a copy of its own that the test may damage."""

    def copy(case: str, target: str, precision: str) -> Path:
        return Path(shutil.copytree(exported(case, target, precision), tmp_path / "package"))

    return copy
