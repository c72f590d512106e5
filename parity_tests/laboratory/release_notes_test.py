"""Notes of a release, from a changelog as it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests.laboratory.release_notes import main, notes
from runtime_py.errors import UsageError

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2027-01-31

### Added

- Something.

## [0.1.0] - 2026-12-01

- First.
"""


def test_a_section_ends_where_the_next_begins() -> None:
    assert notes(CHANGELOG, "v0.2.0", "0.2.0") == "### Added\n\n- Something.\n"
    assert notes(CHANGELOG, "v0.1.0", "0.1.0") == "- First.\n"


@pytest.mark.parametrize(("tag", "version"), [("v0.2.0", "0.3.0"), ("0.2.0", "0.2.0"), ("v0.3.0", "0.3.0")])
def test_another_tag_or_no_section_is_refused(tag: str, version: str) -> None:
    with pytest.raises(UsageError):
        notes(CHANGELOG, tag, version)


def test_an_empty_section_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        notes("## [0.3.0] - 2027-02-01\n\n## [0.2.0] - 2027-01-31\n\n- x\n", "v0.3.0", "0.3.0")


def test_the_changelog_of_this_repository_keeps_a_section_for_what_is_not_released(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "\n## [Unreleased]\n" in (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
    assert main(["v99.0.0"]) == 2
    assert "the version of the code" in capsys.readouterr().err
