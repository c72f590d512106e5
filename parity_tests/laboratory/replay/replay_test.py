"""The replay: packages compared byte by byte, trees driven by their own command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from parity_tests.laboratory.replay.cells import Cell, cells
from parity_tests.laboratory.replay.command import main
from parity_tests.laboratory.replay.difference import FileClass, KeyChange, bytes_changed, class_of, compare, key_changes
from runtime_py.errors import ExitCode, UsageError

CELL = ("--families", "wemm", "--targets", "cpu", "--precisions", "int4")

PROGRAM = """\
import json, sys
from pathlib import Path
assert "--skip-verify" in sys.argv
out = Path(sys.argv[sys.argv.index("-o") + 1])
(out / "onnx").mkdir(parents=True)
(out / "onnx" / "decoder.onnx").write_bytes(GRAPH)
(out / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "files": [{"path": "onnx/decoder.onnx", "bytes": 3}]}))
"""


def tree(folder: Path, graph: bytes, schema: int = 1, program: str = PROGRAM) -> Path:
    """A source tree whose ``python -m export`` writes a package of two files."""
    (folder / "export").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "export" / "__init__.py").touch()
    text = program.replace("GRAPH", repr(graph)).replace("SCHEMA", str(schema))
    (folder / "export" / "__main__.py").write_text(text, encoding="utf-8")
    return folder


def test_every_cell_by_default_and_names_that_no_cell_has() -> None:
    assert len(cells()) == 6 * 5
    assert cells(["wemm"], ["android"]) == [Cell("wemm", "android", "int4")]
    for families, targets, precisions in (("vemm", "cpu", "int4"), ("wemm", "phone", "int4"), ("wemm", "android", "fp32")):
        with pytest.raises(UsageError):
            cells([families], [targets], [precisions])


def test_bytes_are_counted_at_their_place() -> None:
    assert bytes_changed(b"abcd", b"abcd") == 0
    assert bytes_changed(b"abcd", b"aXcdef") == 3
    assert bytes_changed(b"", b"ab") == 2


def test_files_have_their_class() -> None:
    expected = {
        "onnx/decoder.onnx": FileClass.GRAPHS,
        "onnx/decoder.onnx_data": FileClass.WEIGHTS,
        "mlc/m/params_shard_0.bin": FileClass.WEIGHTS,
        "mlc/m/tensor-cache.json": FileClass.WEIGHTS,
        "mlc/m/mlc-chat-config.json": FileClass.CONFIGS,
        "mlc/host/m.so": FileClass.LIBRARIES,
        "tensorrt/decoder.engine": FileClass.LIBRARIES,
        "manifest.json": FileClass.MANIFEST,
        "LICENSE": FileClass.OTHER,
    }
    assert {path: class_of(path) for path in expected} == expected


def test_keys_are_followed_into_lists_of_files() -> None:
    old = {"a": 1, "files": [{"path": "x", "bytes": 1}, {"path": "y", "bytes": 2}], "gone": None}
    new = {"a": 1.0, "files": [{"path": "y", "bytes": 3}, {"path": "x", "bytes": 1}], "here": []}
    assert list(key_changes(old, new)) == [
        KeyChange(("a",), "changed", 1, 1.0),
        KeyChange(("files", "y", "bytes"), "changed", 2, 3),
        KeyChange(("gone",), "removed", old=None),
        KeyChange(("here",), "added", new=[]),
    ]


def test_a_renamed_file_is_no_loss_and_its_manifest_entry_no_key(tmp_path: Path) -> None:
    for side, name in (("base", "a.onnx"), ("head", "b.onnx")):
        (tmp_path / side).mkdir()
        (tmp_path / side / name).write_bytes(b"graph")
        (tmp_path / side / "manifest.json").write_text(json.dumps({"files": [{"path": name, "bytes": 5}]}))
    changes = {change.path: change for change in compare(tmp_path / "base", tmp_path / "head").changes}
    assert (changes["a.onnx"].note, changes["a.onnx"].bytes_changed) == ("renamed to b.onnx", 0)
    assert changes["manifest.json"].keys == ()


def test_equal_trees_pass_and_keys_of_the_manifest_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = tree(tmp_path / "a", b"one"), tree(tmp_path / "b", b"one", schema=2)
    report = tmp_path / "report.json"
    code = main(["--base", str(base), "--head", str(head), *CELL, "--json-file", str(report)])
    shown = capsys.readouterr().out
    assert code == ExitCode.OK
    assert "graphs and weights: 0 bytes changed" in shown
    assert "manifest.json: schema changed, 1 in 1 packages; wemm-cpu-int4: 1 -> 2" in shown
    assert json.loads(report.read_text(encoding="utf-8"))["bytes_changed"] == 0


def test_a_changed_graph_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = tree(tmp_path / "a", b"one"), tree(tmp_path / "b", b"onx")
    assert main(["--base", str(base), "--head", str(head), *CELL]) == ExitCode.PARITY_FAILED
    shown = capsys.readouterr().out
    assert "wemm-cpu-int4: onnx/decoder.onnx  1 bytes" in shown
    assert "graphs and weights: 1 bytes changed" in shown


def test_packages_of_the_base_are_kept_and_taken_again(tmp_path: Path) -> None:
    base, kept = tree(tmp_path / "a", b"one"), tmp_path / "kept"
    assert main(["--base", str(base), *CELL, "--base-out", str(kept), "--export-only"]) == ExitCode.OK
    assert main(["--base", str(kept), "--head", str(base), *CELL]) == ExitCode.OK
    assert main(["--base", str(kept), "--head", str(tree(tmp_path / "b", b"two")), *CELL]) == ExitCode.PARITY_FAILED


def test_an_export_that_fails_shows_its_last_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tree(tmp_path / "a", b"one")
    head = tree(tmp_path / "b", b"one", program="raise SystemExit('no such module')\n")
    assert main(["--base", str(base), "--head", str(head), *CELL]) == ExitCode.INTERNAL
    shown = capsys.readouterr().out
    assert "wemm-cpu-int4: no package of the head\n  no such module" in shown
    assert "nothing was compared" in shown


def test_a_base_that_is_nothing_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "no-such-revision", *CELL]) == ExitCode.USAGE
    assert "neither a folder nor a revision" in capsys.readouterr().err


def test_a_revision_is_checked_out_and_cleared_away(tmp_path: Path) -> None:
    from parity_tests.laboratory.replay.trees import ROOT, side

    if subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False).returncode:
        pytest.skip("the source does not lie in a git repository")
    with side("HEAD", tmp_path / "base") as base:
        assert base.tree is not None
        assert (base.tree / "export" / "__main__.py").is_file()
    assert not base.tree.exists()
