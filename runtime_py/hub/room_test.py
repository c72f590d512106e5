"""What a download still needs, from what the cache holds."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from huggingface_hub.hf_api import RepoSibling

from runtime_py.errors import DoesNotFitError
from runtime_py.hub import room


def sibling(name: str, size: int | None, blob: str, lfs: str | None = None) -> RepoSibling:
    from huggingface_hub.hf_api import BlobLfsInfo

    large = None if lfs is None else BlobLfsInfo(size=size or 0, sha256=lfs, pointer_size=1)
    return RepoSibling(rfilename=name, size=size, blob_id=blob, lfs=large)


def test_what_the_cache_holds_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--you--demo" / "blobs"
    blobs.mkdir(parents=True)
    files = [sibling("a", 100, "aa"), sibling("b", 1000, "pointer", "bb"), sibling("c", 7, "cc"), sibling("d", None, "dd")]
    assert room.bytes_to_fetch("you/demo", files) == 1107
    (blobs / "aa").write_bytes(bytes(100))
    (blobs / "bb.5f.incomplete").write_bytes(bytes(400))
    assert room.bytes_to_fetch("you/demo", files) == 607
    assert room.bytes_to_fetch("you/other", files) == 1107


def test_a_disk_without_room_is_told_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    room.require_room("you/demo", 1)
    with pytest.raises(DoesNotFitError, match="needs 1,000,000,000\\.00 GB more") as caught:
        room.require_room("you/demo", 10**18)
    assert "HF_HUB_CACHE" in caught.value.next_step
    full = room.explained_when_full(OSError(errno.ENOSPC, "No space left on device"), "you/demo")
    assert full is not None and "filled up" in full.what
    assert room.explained_when_full(OSError(errno.ECONNRESET, "reset"), "you/demo") is None
    assert room.explained_when_full(ValueError(), "you/demo") is None
