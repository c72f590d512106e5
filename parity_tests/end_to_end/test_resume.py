"""An export killed at three moments goes on with --resume and ends with the hashes of an undisturbed run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity_tests.laboratory.file_hashes import hashes
from runtime_py.errors import PackageError
from runtime_py.package import read, verify

GOLDEN = Path(__file__).parents[1] / "goldens" / "minicpm-v"
EXPORT = [
    *(sys.executable, "-m", "export", "--model", str(GOLDEN), "--target", "cpu", "--precision", "int4"),
    *("--without-tokenizer", "--skip-verify", "-q"),
]
PATIENCE_SECONDS = 300


def finished_steps(partial: Path) -> list[str]:
    try:
        return list(json.loads((partial / "journal.json").read_text())["steps"])
    except (OSError, ValueError):
        return []


def kill_after(steps: int, output: Path, stop: signal.Signals, *flags: str) -> int:
    """Start an export and send it ``stop`` once its journal holds ``steps`` steps; returns its exit status."""
    partial = output.with_name(output.name + ".partial")
    deadline = time.monotonic() + PATIENCE_SECONDS
    with subprocess.Popen([*EXPORT, "-o", str(output), *flags], stderr=subprocess.PIPE, text=True) as running:
        while len(finished_steps(partial)) < steps:
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(stop)
        printed = running.communicate()[1]
    if stop is signal.SIGTERM:
        assert "--resume" in printed
    return running.returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run([*EXPORT, "-o", str(output)], check=True)
    return output


def test_three_kills_and_the_same_hashes(undisturbed: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    assert kill_after(1, output, signal.SIGKILL) == -signal.SIGKILL
    assert not output.exists()
    first = finished_steps(partial)
    torn = partial / "onnx" / "vision_encoder_int8.onnx_data_1.tmp"
    torn.parent.mkdir(exist_ok=True)
    torn.write_bytes(b"torn")
    written = {row["path"]: (partial / row["path"]).stat().st_mtime_ns for row in journalled(partial)}

    assert kill_after(2, output, signal.SIGKILL, "--resume") == -signal.SIGKILL
    assert finished_steps(partial)[: len(first)] == first
    assert all((partial / path).stat().st_mtime_ns == time_then for path, time_then in written.items()), "done again"
    assert not torn.exists()

    assert kill_after(3, output, signal.SIGTERM, "--resume") == 6
    assert not output.exists()

    refused = subprocess.run([*EXPORT, "-o", str(output)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    other = [*EXPORT, "-o", str(output), "--resume", "--context", "64"]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "context: 128 then, 64 now" in refused.stderr

    subprocess.run([*EXPORT, "-o", str(output), "--resume"], check=True)
    assert hashes(output) == hashes(undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def journalled(partial: Path) -> list[dict]:
    steps = json.loads((partial / "journal.json").read_text())["steps"]
    return [row for rows in steps.values() for row in rows]


def test_no_path_or_time_of_this_machine_is_in_a_package(undisturbed: Path) -> None:
    for path in undisturbed.rglob("*"):
        if path.is_file() and path.name != "README.md":
            content = path.read_bytes()
            for trace in (str(undisturbed.parent), str(GOLDEN.parents[2]), str(Path.home()) + "/"):
                assert trace.encode() not in content, f"{path.name} holds {trace}"


@pytest.mark.parametrize("harm", ["changed", "shortened", "removed", "added"])
def test_a_tampered_package_is_refused_by_name(undisturbed: Path, tmp_path: Path, harm: str) -> None:
    package = tmp_path / "out"
    shutil.copytree(undisturbed, package)
    verify(read(package))
    victim = next(path for path in sorted(package.rglob("*.onnx_data")))
    content = bytearray(victim.read_bytes())
    if harm == "changed":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif harm == "shortened":
        victim.write_bytes(content[:-1])
    elif harm == "removed":
        victim.unlink()
    else:
        victim = package / "onnx" / "extra.onnx"
        victim.write_bytes(b"x")
    with pytest.raises(PackageError) as caught:
        verify(read(package))
    assert victim.name in str(caught.value)
