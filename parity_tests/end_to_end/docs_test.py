"""The documentation: every page reached from README.md, no link that leads nowhere, no module or file that is not there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "parity_tests" / "laboratory" / "README.md")
    if path.name != "CHANGELOG.md"
)
OTHERS = ("pip", "pytest", "build", "venv")
"""Modules that pages name and that are not ours."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"python3? -m ([A-Za-z_][\w.]*)")
FILE = re.compile(r"(?<![\w/.-])((?:export|calibrate|targets|runtime_py|parity_tests)/[\w./-]*\.(?:py|toml|json))\b")
PLACEHOLDER = re.compile(r"[A-Z]{3}|\bmy_")
ANCHOR = re.compile(r"[^\w\- ]")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each link that stays in the repository."""
    links = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            file, _, anchor = target.partition("#")
            links.append(((page.parent / file).resolve() if file else page, anchor))
    return links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {ANCHOR.sub("", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [name(file) for file, _ in links(page) if not file.exists()] == []
    headed = [(file, anchor) for file, anchor in links(page) if anchor and file.suffix == ".md"]
    assert [f"{name(file)}#{anchor}" for file, anchor in headed if anchor not in anchors(file)] == []


def test_every_page_can_be_reached_from_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [file for file, _ in links(page) if file.suffix == ".md" and file.is_file()]
    assert [name(page) for page in PAGES if page not in reached] == []
    index = {file for file, _ in links(ROOT / "docs" / "README.md")}
    top = {path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"}
    assert [name(page) for page in sorted(top - index)] == [], "not in docs/README.md"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    modules = {word.rstrip(".") for word in MODULE.findall(text)} - set(OTHERS)
    assert [word for word in sorted(modules) if not known(word)] == []
    files = [word for word in sorted(set(FILE.findall(text))) if not PLACEHOLDER.search(word)]
    assert [word for word in files if not (ROOT / word).exists() and not (page.parent / word).exists()] == []


def test_every_program_that_the_laboratory_lists_can_be_run() -> None:
    text = (ROOT / "parity_tests" / "laboratory" / "README.md").read_text(encoding="utf-8")
    programs = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    assert len(programs) > 40
    assert [program for program in programs if not known(f"parity_tests.laboratory.{program}")] == []


def known(module: str) -> bool:
    """Whether ``python -m`` runs it; a part in capitals stands for any."""
    if PLACEHOLDER.search(module):
        return True
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return False
    if spec.submodule_search_locations is not None:
        return find_spec(f"{module}.__main__") is not None
    return '__name__ == "__main__"' in Path(spec.origin).read_text(encoding="utf-8")
