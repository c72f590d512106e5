"""A page that a message names can be opened, from a checkout and where a wheel was installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from runtime_py.command import failure, pages
from runtime_py.errors import UsageError

ROOT = Path(__file__).parents[2]
ERROR = UsageError("failed", "another thing", "see docs/checkpoints.md#links, docs/cli.md and docs/none.md")


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    failure.report(ERROR)
    return re.findall(r"^  (docs/.*)$", capsys.readouterr().err, re.MULTILINE)


def test_from_elsewhere_an_error_says_where_its_pages_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys) == [f"docs/{name}: {ROOT / 'docs' / name}" for name in ("checkpoints.md", "cli.md")]
    monkeypatch.chdir(ROOT)
    assert said(capsys) == [], "the name is the path"


def test_a_wheel_has_them_beside_the_package_and_without_them_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which folder that is, the project's file says."""
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert included["force-include"]["docs"] == pages.PLACES[1].relative_to(ROOT).as_posix()
    installed = tmp_path / "site-packages" / "runtime_py" / "docs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "PLACES", (installed.parents[1] / "docs", installed))
    assert said(capsys) == []
    installed.mkdir(parents=True)
    (installed / "cli.md").touch()
    assert said(capsys) == [f"docs/cli.md: {installed / 'cli.md'}"]


def test_every_page_that_the_product_names_is_there() -> None:
    """In text of its own, not in the sources it cites from other projects."""
    packages = ("runtime_py", "targets", "export", "calibrate", "parity_tests")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py") if not path.name.endswith("_test.py")]
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.lstrip().startswith(('"', 'f"', "raise", "log", "return", "yield", "NEXT", "OWN", "needs"))
        for name in pages.NAMED.findall(line)
        if '"""' not in line and not (ROOT / "docs" / name).is_file() and "hub-docs" not in line and "{" not in name
    }
    assert missing == set()
