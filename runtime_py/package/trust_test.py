"""Trust in packages that bring code: asked for, given, remembered, and lost when the manifest changes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from runtime_py import package
from runtime_py.errors import PackageError, UsageError
from runtime_py.package import trust
from runtime_py.package.package_test import FILES, write
from runtime_py.package.trust import Standing

MLC = {
    "runtime_backend": "mlc",
    "backends": {
        "mlc": {"model_id": "m", "model_lib": "m", "weights": "onnx", "host_library": "onnx/a.bin", "tvm": "1"},
    },
}


@pytest.fixture(autouse=True)
def trust_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home" / "edgeproof" / "trusted"
    monkeypatch.setenv(trust.VARIABLE, str(path))
    return path


def made(folder: Path, **changes: Any) -> package.Package:
    return package.read(write(folder, FILES, **{**MLC, **changes}))


def test_data_needs_no_trust(tmp_path: Path) -> None:
    opened = package.read(write(tmp_path / "p", FILES))
    assert not trust.runs_code(opened)
    trust.require(opened)
    with pytest.raises(PackageError, match="brings code"):
        trust.require(opened, "trt")


def test_code_is_asked_for_and_remembered(tmp_path: Path, trust_file: Path) -> None:
    opened = made(tmp_path / "p")
    assert trust.runs_code(opened) and trust.code_files(opened.manifest) == ["onnx/a.bin"]
    with pytest.raises(PackageError, match=r"onnx/a\.bin") as caught:
        trust.require(opened)
    assert opened.fingerprint in caught.value.expected and "--trust sha256:" in caught.value.next_step
    trust.require(opened, given=True)
    assert not trust_file.exists(), "asking remembers nothing"
    assert trust.remember(opened) == trust_file
    trust.remember(opened)
    assert len(trust_file.read_text().splitlines()) == 1
    assert stat.S_IMODE(trust_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(trust_file.parent.stat().st_mode) == 0o700
    trust.remember(made(tmp_path / "another", variant="2.0"))
    assert len(trust_file.read_text().splitlines()) == 2
    trust.require(opened)


def test_code_that_is_not_what_the_manifest_hashed_never_runs(tmp_path: Path) -> None:
    opened = made(tmp_path / "p")
    trust.remember(opened)
    trust.require(opened)
    (opened.folder / "onnx" / "a.bin").write_bytes(b"WEIGHTS")
    for given in (False, True, opened.fingerprint):
        with pytest.raises(PackageError, match="not the file of the trusted manifest"):
            trust.require(opened, given=given)
    trust.require(opened, "ort")


def test_a_changed_package_is_told_apart(tmp_path: Path) -> None:
    opened = made(tmp_path / "a folder\nwith a line")
    trust.remember(opened)
    value = json.loads((opened.folder / "manifest.json").read_text())
    (opened.folder / "manifest.json").write_text(json.dumps({**value, "variant": "2.0"}))
    changed = package.read(opened.folder)
    assert trust.standing(changed) is Standing.CHANGED
    with pytest.raises(PackageError, match="changed since it was trusted"):
        trust.require(changed)
    assert trust.standing(made(tmp_path / "b", variant="3.0")) is Standing.UNKNOWN
    moved = opened.folder.rename(tmp_path / "moved")
    (moved / "manifest.json").write_text(json.dumps(value))
    trust.require(package.read(moved))


def test_a_given_hash_is_compared_whatever_the_backend(tmp_path: Path) -> None:
    for opened in (made(tmp_path / "code"), package.read(write(tmp_path / "data", FILES))):
        trust.require(opened, given=opened.fingerprint)
        trust.require(opened, given=f"SHA256:{opened.fingerprint[:16].upper()}")
        with pytest.raises(PackageError, match="is not the package"):
            trust.require(opened, given="0" * 64)


@pytest.mark.parametrize("text", ["", "sha256:", "0" * 15, "0" * 65, "md5:" + "0" * 32, "g" * 64, "0" * 63 + "\n0"])
def test_what_is_no_hash_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the trusted hash"):
        trust.expected(text)


def test_the_trust_file_is_in_the_users_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPROOF_TRUST")
    monkeypatch.setenv("HOME", str(tmp_path))
    for settings, folder in (("", tmp_path / ".config"), (str(tmp_path / "own"), tmp_path / "own")):
        monkeypatch.setenv("XDG_CONFIG_HOME", settings)
        assert trust.trust_file() == folder / "edgeproof" / "trusted"
    monkeypatch.setenv("EDGEPROOF_TRUST", "elsewhere")
    assert trust.trust_file() == Path("elsewhere")


def test_a_trust_file_of_another_form(tmp_path: Path, trust_file: Path) -> None:
    trust_file.parent.mkdir(parents=True)
    trust_file.write_bytes(b"\xff\xfe nonsense\n\nsha256:12 /x\nsha256:" + b"0" * 64 + b"\n")
    assert trust.standing(made(tmp_path / "p")) is Standing.UNKNOWN
    trust_file.unlink()
    trust_file.mkdir()
    with pytest.raises(UsageError, match="trusted"):
        trust.standing(made(tmp_path / "p"))
