"""The journal: what a resume keeps, what it removes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.package.journal import Journal, sha256_of, write_json
from runtime_py.errors import UsageError

FINGERPRINT = {"target": "cpu", "context": 64}


def begun(folder: Path) -> Journal:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder, FINGERPRINT)
    journal.begin()
    return journal


def step(journal: Journal, name: str, path: str, content: bytes) -> None:
    whole = journal.folder / path
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.write_bytes(content)
    journal.finish(name, [Path(path)])


def test_resume_keeps_whole_steps_and_removes_what_no_step_made(tmp_path: Path) -> None:
    journal = begun(tmp_path / "p")
    step(journal, "one", "onnx/a.bin", b"a" * 100)
    (tmp_path / "p/onnx/half.bin.tmp").write_bytes(b"torn")
    (tmp_path / "p/empty/deeper").mkdir(parents=True)
    again = Journal(tmp_path / "p", FINGERPRINT)
    assert again.resume() == ["one"]
    assert [record.path for record in again.files()] == ["onnx/a.bin"]
    assert again.files()[0].sha256 == sha256_of(tmp_path / "p/onnx/a.bin")
    left = sorted(path.relative_to(tmp_path / "p").as_posix() for path in (tmp_path / "p").rglob("*"))
    assert left == ["journal.json", "onnx", "onnx/a.bin"]


@pytest.mark.parametrize("damage", [b"", b"a" * 99, b"a" * 99 + b"b"])
def test_resume_runs_a_step_again_when_its_file_differs(tmp_path: Path, damage: bytes) -> None:
    journal = begun(tmp_path / "p")
    step(journal, "one", "a.bin", b"a" * 100)
    step(journal, "two", "b.bin", b"b")
    (tmp_path / "p/a.bin").write_bytes(damage)
    again = Journal(tmp_path / "p", FINGERPRINT)
    assert again.resume() == ["two"]
    assert not (tmp_path / "p/a.bin").exists()
    assert (tmp_path / "p/b.bin").exists()


def test_resume_refuses_another_request_and_says_what_differs(tmp_path: Path) -> None:
    step(begun(tmp_path / "p"), "one", "a.bin", b"a")
    with pytest.raises(UsageError) as caught:
        Journal(tmp_path / "p", {**FINGERPRINT, "context": 128}).resume()
    assert "context: 64 then, 128 now" in caught.value.expected
    assert "target" not in caught.value.expected
    assert (tmp_path / "p/a.bin").exists(), "a refused resume must not touch the folder"


def test_what_differs_inside_an_object_is_said_by_its_own_key(tmp_path: Path) -> None:
    """A checkpoint of many files, of which one was written again."""
    files = {f"shard-{number}.safetensors": f"{number}-{10**18}" for number in range(9)}
    (tmp_path / "p").mkdir()
    Journal(tmp_path / "p", {"checkpoint": files}).begin()
    with pytest.raises(UsageError) as caught:
        Journal(tmp_path / "p", {"checkpoint": {**files, "shard-7.safetensors": "7-1"}}).resume()
    assert caught.value.expected.endswith(
        'different are checkpoint shard-7.safetensors: "7-1000000000000000000" then, "7-1" now'
    )
    with pytest.raises(UsageError) as caught:
        Journal(tmp_path / "p", {"checkpoint": {}}).resume()
    assert "and 6 more" in caught.value.expected and "null now" in caught.value.expected


@pytest.mark.parametrize(
    "content",
    [
        *('{"fingerpr', "[]", "{}", "[" * 5000, "\0"),
        '{"fingerprint": 5, "steps": {}, "source": {}}',
        '{"fingerprint": {}, "steps": {"a": [5]}, "source": {}}',
        '{"fingerprint": {}, "steps": {"a": [{"path": "../x", "bytes": 1, "sha256": "0"}]}, "source": {}}',
    ],
)
def test_a_journal_of_another_form_is_refused_and_nothing_is_touched(tmp_path: Path, content: str) -> None:
    step(begun(tmp_path / "p"), "one", "a.bin", b"a")
    (tmp_path / "p/journal.json").write_text(content)
    with pytest.raises(UsageError, match="no journal of an export"):
        Journal(tmp_path / "p", FINGERPRINT).resume()
    assert (tmp_path / "p/a.bin").exists()


def test_a_kill_before_the_first_journal_starts_over(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/journal.json.tmp").write_text('{"fingerpr')
    again = Journal(tmp_path / "p", FINGERPRINT)
    assert again.resume() == []
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["journal.json"]


def test_a_users_file_beside_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "p.journal.json").write_text("my diary")
    (tmp_path / "p").mkdir()
    with pytest.raises(UsageError, match="no journal of an export"):
        Journal(tmp_path / "p", FINGERPRINT).begin()
    assert (tmp_path / "p.journal.json").read_text() == "my diary"


def test_a_journal_set_aside_is_found_again(tmp_path: Path) -> None:
    journal = begun(tmp_path / "p")
    step(journal, "one", "a.bin", b"a")
    journal.set_aside()
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["a.bin"]
    again = Journal(tmp_path / "p", FINGERPRINT)
    assert again.resume() == ["one"]
    again.remove()
    assert {path.name for path in tmp_path.rglob("*")} == {"p", "a.bin"}


def test_source_hashes_are_remembered(tmp_path: Path) -> None:
    begun(tmp_path / "p").remember_source("model.safetensors", "0" * 64)
    again = Journal(tmp_path / "p", FINGERPRINT)
    again.resume()
    assert again.source_hash("model.safetensors") == "0" * 64
    assert again.source_hash("config.json") is None


def test_a_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]
