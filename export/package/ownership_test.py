"""What an export may empty: its own folders. A user's folder of the same name stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.package.disk import check_output, clean_up, keep_failed, promote
from export.package.journal import Journal
from export.package.ownership import free_name, is_unfinished, remove_package, remove_unfinished, stored_manifest
from runtime_py.errors import UsageError

FINGERPRINT = {"target": "cpu"}


def package(folder: Path, verdict: str = "pass") -> Path:
    folder.mkdir(parents=True)
    value = {"schema": 2, "edgeproof": "1", "files": [], "verification": {"verdict": verdict}}
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder


def begun(folder: Path) -> Journal:
    folder.mkdir(parents=True)
    journal = Journal(folder, FINGERPRINT)
    journal.begin()
    return journal


def mine(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    return folder


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"schema": 1}', '{"name": "web app", "files": []}', '{"schema": "2", "edgeproof": "1", "files": []}'],
)
def test_a_strangers_manifest_is_none_of_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "thesis.txt").write_text("mine")
    assert stored_manifest(tmp_path) is None and not is_unfinished(tmp_path)
    remove_package(tmp_path)
    with pytest.raises(UsageError, match="no unfinished export"):
        remove_unfinished(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"steps": {}}', '{"fingerprint": {}, "steps": [], "source": {}}'])
def test_a_strangers_journal_is_none_of_ours(tmp_path: Path, content: str) -> None:
    folder = mine(tmp_path / "out.partial")
    (folder / "journal.json").write_text(content)
    for force, resume in ((True, False), (False, True), (False, False)):
        with pytest.raises(UsageError, match="no unfinished export"):
            check_output(tmp_path / "out", force, resume)
    assert (folder / "thesis.txt").exists()


def test_links_are_never_followed(tmp_path: Path) -> None:
    real = package(tmp_path / "real")
    begun(tmp_path / "begun")
    for name, target in (("out", real), ("out.partial", tmp_path / "begun"), ("out.old", real), ("out.failed", real)):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(UsageError, match="link"):
        check_output(tmp_path / "out", force=True, resume=False)
    (tmp_path / "out").unlink()
    with pytest.raises(UsageError, match="no unfinished export"):
        check_output(tmp_path / "out", force=True, resume=False)
    for name in ("out.old", "out.failed"):
        remove_package(tmp_path / name)
    assert (real / "manifest.json").exists() and (tmp_path / "begun" / "journal.json").exists()


def test_what_an_export_left_is_ours(tmp_path: Path) -> None:
    begun(tmp_path / "a")
    begun(tmp_path / "b").set_aside()
    package(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "journal.json.tmp").write_text("torn")
    for name in "abcde":
        assert is_unfinished(tmp_path / name), name
        remove_unfinished(tmp_path / name)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.parametrize("old", ["absent", "mine", "a package"])
def test_promotion_takes_a_name_that_nobody_has(tmp_path: Path, old: str) -> None:
    if old == "mine":
        mine(tmp_path / "out.old")
    elif old == "a package":
        package(tmp_path / "out.old")
    package(tmp_path / "out")
    (tmp_path / "out" / "before").touch()
    journal = begun(tmp_path / "out.partial")
    (tmp_path / "out.partial" / "after").touch()
    journal.set_aside()
    promote(tmp_path / "out.partial", tmp_path / "out", journal)
    assert (tmp_path / "out" / "after").exists() and not (tmp_path / "out" / "before").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out"} | ({"out.old"} if old != "absent" else set())


def test_a_kill_between_the_two_names_is_tidied_up(tmp_path: Path) -> None:
    """As `promote` leaves it when it dies after giving the package its name, before removing the one replaced."""
    package(tmp_path / "out.old")
    package(tmp_path / "out.old-2")
    journal = begun(tmp_path / "out.partial")
    journal.set_aside()
    journal.remember_replaced(tmp_path / "out.old-2")
    (tmp_path / "out.partial").rename(package(tmp_path / "out") / "ignored")
    again = Journal(tmp_path / "out.partial", FINGERPRINT)
    assert again.finished()
    clean_up(tmp_path / "out", again)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.old"}
    assert not Journal(tmp_path / "out.partial", {"target": "other"}).finished()


@pytest.mark.parametrize("earlier", ["absent", "mine", "passed", "failed"])
def test_only_an_earlier_failed_package_makes_room(tmp_path: Path, earlier: str) -> None:
    failed = tmp_path / "out.failed"
    if earlier == "mine":
        mine(failed)
    elif earlier != "absent":
        package(failed, "pass" if earlier == "passed" else "fail")
        (failed / "before").touch()
    package(tmp_path / "out.partial", "fail")
    journal = Journal(tmp_path / "out.partial", FINGERPRINT)
    kept = keep_failed(tmp_path / "out.partial", tmp_path / "out", journal)
    assert kept.name == ("out.failed-2" if earlier in ("mine", "passed") else "out.failed")
    assert failed.exists() and (earlier != "mine" or (failed / "thesis.txt").exists())
    assert (failed / "before").exists() == (earlier == "passed")


def test_a_free_name_skips_links_and_files(tmp_path: Path) -> None:
    assert free_name(tmp_path / "a").name == "a"
    (tmp_path / "a").symlink_to("nowhere")
    (tmp_path / "a-2").touch()
    assert free_name(tmp_path / "a").name == "a-3"
