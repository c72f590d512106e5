"""Bad input gives one clear error with the right exit code, and nothing half-written under the package's name.

Each row of the closing table of bad inputs is a test here: the real command line over real damaged files.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.__main__ import main
from runtime_py.errors import ImageError
from runtime_py.preprocess.pictures import open_picture

GOLDEN = Path(__file__).parents[1] / "goldens" / "minicpm-v"
HEAD = "llm.lm_head.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole tiny checkpoint that a test then damages."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, folder / name)
    return folder


def rewrite(checkpoint: Path, change: Callable[[dict], None]) -> None:
    """Write model.safetensors again with its tensors changed; a tensor is (dtype, shape, bytes)."""
    path = checkpoint / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    tensors = {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    change(tensors)
    made, body = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    encoded = json.dumps(made).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)


def missing_tensor(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop(HEAD))


def left_over_tensor(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.update({"vpm.attn_pool.q.weight": ("F32", [2], b"\0" * 8)}))


def wrong_shape(checkpoint: Path) -> None:
    def turn(tensors: dict) -> None:
        dtype, shape, content = tensors[HEAD]
        tensors[HEAD] = (dtype, shape[::-1], content)

    rewrite(checkpoint, turn)


def wrong_dtype(checkpoint: Path) -> None:
    def integers(tensors: dict) -> None:
        _, shape, content = tensors[HEAD]
        tensors[HEAD] = ("I32", shape, content)

    rewrite(checkpoint, integers)


def truncated(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def header_longer_than_the_file(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


def index_outside_the_folder(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {HEAD: "../secret.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


class RunsCode:
    """Unpickling this makes a file, which the test looks for."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.trace),))


def pickle_that_runs_code(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with zipfile.ZipFile(checkpoint / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({HEAD: RunsCode(checkpoint / "ran")}))
        archive.writestr("archive/version", "3")


def config(checkpoint: Path, **changes: object) -> None:
    value = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**value, **changes}))


def unknown_model_type(checkpoint: Path) -> None:
    config(checkpoint, model_type="unheard-of", architectures=["Unheard"])


def later_version(checkpoint: Path) -> None:
    config(checkpoint, version="2.5")


def config_cut_off(checkpoint: Path) -> None:
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text[: len(text) // 2])


def no_tokenizer(checkpoint: Path) -> None:
    """Goldens have none; the flag that accepts this is left out by the test."""


BAD_CHECKPOINTS = [
    (missing_tensor, 2, [f"missing: {HEAD}", "1 problem"]),
    (left_over_tensor, 2, ["left over: vpm.attn_pool.q.weight"]),
    (wrong_shape, 2, [f"wrong shape: {HEAD} is [128, 256], expected [256, 128]"]),
    (wrong_dtype, 2, [f"wrong dtype: {HEAD} is int32"]),
    (truncated, 2, ["model.safetensors"]),
    (header_longer_than_the_file, 2, ["model.safetensors", "header"]),
    (index_outside_the_folder, 2, ["../secret.safetensors"]),
    (pickle_that_runs_code, 2, ["pytorch_model.bin", "mkdir"]),
    (unknown_model_type, 3, ["unheard-of", "minicpm-v"]),
    (later_version, 3, ["MiniCPM-V 2.5"]),
    (config_cut_off, 2, ["config.json is not JSON"]),
    (no_tokenizer, 2, ["holds no tokenizer", "--without-tokenizer"]),
]


@pytest.mark.parametrize(("damage", "code", "words"), BAD_CHECKPOINTS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_checkpoints_are_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], code: int, words: list[str]
) -> None:
    damage(checkpoint)
    output = checkpoint.parent / "out"
    arguments = ["--model", str(checkpoint), "--target", "cpu", "-o", str(output), "--skip-verify"]
    if damage is not no_tokenizer:
        arguments.append("--without-tokenizer")
    assert main(arguments) == code
    one_clear_error(capsys.readouterr().err, words)
    assert {path.name for path in checkpoint.parent.iterdir()} <= {"checkpoint", "secret.safetensors"}
    assert not (checkpoint / "ran").exists()


def one_clear_error(printed: str, words: list[str]) -> None:
    """Exactly one error of three parts, holding ``words``, and no traceback."""
    assert printed.count("error:") == 1, printed
    assert "\n  expected: " in printed
    assert "\n  next: " in printed
    assert "Traceback" not in printed
    for word in words:
        assert word in printed, printed


def test_a_model_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        "minicpm-v",
        "--weights",
        str(tmp_path / "nowhere"),
        "--target",
        "cpu",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 2
    one_clear_error(capsys.readouterr().err, ["nowhere"])
    assert list(tmp_path.iterdir()) == []


EXPORT = [
    *(sys.executable, "-m", "export", "--model", str(GOLDEN), "--target", "cpu", "--precision", "fp32"),
    *("--without-tokenizer", "--skip-verify"),
]


def export_golden(output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The real command in its own process."""
    return subprocess.run([*EXPORT, "-o", str(output), *more], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, less than the package needs but more than its first files."""
    yield from mounted(tmp_path / "small", "size=1m")


@pytest.fixture
def filling_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for the plan, which the test then fills."""
    yield from mounted(tmp_path / "filling", "size=72m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "readonly", "size=1m,ro")


def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_too_small_for_the_plan_is_refused_before_work(small_disk: Path) -> None:
    result = export_golden(small_disk / "out")
    assert result.returncode == 4
    one_clear_error(result.stderr, ["on the disk", "free"])
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_during_the_work(filling_disk: Path) -> None:
    output = filling_disk / "out"
    with subprocess.Popen([*EXPORT, "-o", str(output)], stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not (filling_disk / "out.partial" / "journal.json").exists():
            time.sleep(0.01)
        fill(filling_disk / "filler")
        printed = running.communicate()[1]
    assert running.returncode == 7, printed
    one_clear_error(printed, ["the disk is full", "--resume"])
    assert not output.exists()
    left = [path.name for path in (filling_disk / "out.partial").rglob("*") if path.is_file()]
    assert "manifest.json" not in left
    assert not [name for name in left if name.endswith((".tmp", ".partial"))]
    (filling_disk / "filler").unlink()
    again = export_golden(output, "--resume")
    assert again.returncode == 0, again.stderr
    assert (output / "manifest.json").is_file()
    assert {path.name for path in filling_disk.iterdir()} == {"out"}


def fill(path: Path) -> None:
    """Write until the disk has no byte left."""
    with path.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(b"\0" * 4096)


def test_a_folder_that_cannot_be_written(read_only_disk: Path) -> None:
    result = export_golden(read_only_disk / "out")
    assert result.returncode == 7
    one_clear_error(result.stderr, ["cannot be written", "Read-only"])


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert main(["--model", str(GOLDEN), "--target", "cpu", "-o", str(tmp_path / "out"), "--without-tokenizer"]) == 2
    one_clear_error(capsys.readouterr().err, ["is a file"])
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["empty.png", "text.png", "huge.png", "cut.png"])
def test_bad_images_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "text.png":
        path.write_text("no image at all")
    elif name == "huge.png":
        Image.new("1", (10_000, 10_000)).save(path)
    elif name == "cut.png":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.touch()
    with pytest.raises(ImageError) as caught:
        open_picture(path)
    assert name in caught.value.what
    assert caught.value.next_step
