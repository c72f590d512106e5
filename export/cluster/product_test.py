"""What is sent to workers, and the refusal of a worker with other versions."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from export.cluster.product import PACKAGES, ROOT, Product, digest_of, files, here, pack, require_same
from export.cluster.worker import carry_out
from runtime_py.errors import MachineError

PRODUCT = Product("a" * 64, "3.11", {"numpy": "2.0", "torch": "2.9"})


def test_the_archive_holds_the_product_and_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = pack(tmp_path / "first.zip"), pack(tmp_path / "second.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "worker")
    assert {"export/cluster/worker.py", "parity_tests/goldens/wemm/outputs.npz", "targets/devices.toml"} <= set(names)
    assert not [name for name in names if name.endswith(("_test.py", ".pyc")) or "laboratory" in name]
    assert digest_of(tmp_path / "worker") == digest_of(ROOT), "a worker sees the same product"


def test_the_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    path = tmp_path / "export" / "a.py"
    path.write_text("1")
    before = digest_of(tmp_path)
    (tmp_path / "export" / "a_test.py").write_text("no part of it")
    assert (digest_of(tmp_path), [str(name) for name in files(tmp_path)]) == (before, [str(Path("export", "a.py"))])
    path.write_text("2")
    changed = digest_of(tmp_path)
    path.rename(tmp_path / "export" / "b.py")
    assert len({before, changed, digest_of(tmp_path)}) == 3


def test_equal_versions_are_accepted() -> None:
    require_same(PRODUCT, replace(PRODUCT, libraries=dict(PRODUCT.libraries)))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(PRODUCT, python="3.12"), "Python 3.11, found 3.12"),
        (replace(PRODUCT, libraries={"numpy": "2.1", "torch": "2.9"}), "numpy 2.0, found 2.1"),
        (replace(PRODUCT, libraries={"numpy": "2.0"}), "torch 2.9, found none"),
        (replace(PRODUCT, libraries={**PRODUCT.libraries, "onnx": "1.19"}), "onnx none, found 1.19"),
        (replace(PRODUCT, digest="b" * 64), "files of edgeproof aaaaaaaaaaaa, found bbbbbbbbbbbb"),
    ],
)
def test_other_versions_are_named_with_both(other: Product, named: str) -> None:
    with pytest.raises(MachineError) as caught:
        require_same(PRODUCT, other)
    assert caught.value.expected == named


def test_a_worker_with_other_versions_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # put back at the end, as carry_out goes to the folder that it is given
    wrong = replace(here(), digest="b" * 64)
    answer = carry_out(wrong, tmp_path, Path.touch, tmp_path / "done")
    assert isinstance(answer, MachineError)
    assert not (tmp_path / "done").exists()
    carry_out(here(), tmp_path, Path.touch, Path("done"))
    assert (tmp_path / "done").exists(), "a relative path is meant from the asking machine's folder"
