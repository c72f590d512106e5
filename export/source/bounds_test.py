"""Small files that ask for gigabytes, for ever, or for a crash: refused within seconds and within little memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export.source.pickle_reader import LEGACY_START

SECONDS, MEGABYTES = 5, 200

READ = """
import sys, time
from pathlib import Path
import torch
from export.source.checkpoint import open_checkpoint
from runtime_py.errors import CheckpointError
from runtime_py.memory import peak_resident_bytes
before, began = peak_resident_bytes(), time.process_time()
try:
    source = open_checkpoint(Path(sys.argv[1]))
    said = f"accepted {len(source.infos)}"
except CheckpointError as error:
    said = "refused"
print(said, round(time.process_time() - began, 2), peak_resident_bytes() - before >> 20)
"""


def archive(program: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("archive/data.pkl", program)
        made.writestr("archive/version", "3")
    return out.getvalue()


def many_members(count: int, size_told: int | None = None) -> bytes:
    """An archive whose list of members is long, and its members nothing."""
    row = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 1, *[0] * 6)
    row = row[:46] + b"a"
    rows = row * count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size_told or len(rows), 30, 0)
    return b"PK\x03\x04" + bytes(26) + rows + end


BIG = b"(" + b"(K\x01K\x02t" * 100_000 + b"lq\x00"
ORDERED = b"ccollections\nOrderedDict\nq\x01"

BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty sets": ("b", lambda: archive(b"\x80\x02]" + b"\x8f" * 20_000_000)),
    "empty lists": ("b", lambda: archive(b"\x80\x02" + b"]" * 20_000_000)),
    "marks": ("b", lambda: archive(b"\x80\x02" + b"(" * 20_000_000)),
    "nothings": ("b", lambda: archive(b"\x80\x02" + b"N" * 20_000_000)),
    "memo": ("b", lambda: archive(b"\x80\x04" + b"N\x94" * 10_000_000)),
    "copies of a long list": ("b", lambda: archive(b"\x80\x02" + BIG + ORDERED + b"h\x01h\x00\x85R" * 100_000 + b".")),
    "copies of a size": (
        "b",
        lambda: archive(b"\x80\x02" + BIG + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 100_000 + b"."),
    ),
    "a long integer": ("b", lambda: archive(b"\x80\x02\x8b" + struct.pack("<i", 20_000_000) + b"\x7f" * 20_000_000 + b".")),
    "a text of 2^60 bytes": ("b", lambda: archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"a.")),
    "a line without end": ("b", lambda: LEGACY_START + b"." + b"\x80\x02c" + b"a" * 50_000_000),
    "texts": (
        "b",
        lambda: LEGACY_START + b"." + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + b"\x80\x02" + b"X\0\0\0\0" * 4_000_000,
    ),
    "members": ("b", lambda: many_members(1_000_000)),
    "a directory longer than the file": ("b", lambda: many_members(10, 2**31)),
    "a name twice at the end": (
        "s",
        lambda: header(b"{" + b",".join(b'"n%d":0' % number for number in [*range(40_000), 39_999]) + b"}"),
    ),
    "a header of lists": ("s", lambda: header(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}")),
    "a header of numbers": ("s", lambda: header(b'{"a":' + b"9" * 8_000_000 + b"}")),
    "a deep header": ("s", lambda: header(b'{"a":' * 1_000_000)),
    "a long shape": (
        "s",
        lambda: header(
            json.dumps({"a": {"dtype": "F32", "shape": [2**63] * 100_000, "data_offsets": [0, 4]}}).encode(), bytes(4)
        ),
    ),
    "a header of 2^63 bytes": ("s", lambda: struct.pack("<Q", 2**63) + b"{}"),
}


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("name", BOMBS)
def test_archive_bombs_are_refused_within_time_and_memory(name: str, tmp_path: Path) -> None:
    kind, make = BOMBS[name]
    (tmp_path / ("pytorch_model.bin" if kind == "b" else "model.safetensors")).write_bytes(make())
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    said, seconds, grown = done.stdout.split()
    assert said == "refused"
    assert float(seconds) < SECONDS and int(grown) < MEGABYTES, done.stdout


@pytest.mark.parametrize("count", ["99999999999", "999999", "00000"])
def test_shard_counts_in_names(tmp_path: Path, count: str) -> None:
    from export.source.checkpoint import open_checkpoint
    from export.source.safetensors_reader_test import entry, write
    from runtime_py.errors import CheckpointError

    write(tmp_path / f"model-00001-of-{count}.safetensors", {"a": entry(0, 4)}, bytes(4))
    if len(count) > 6:
        assert set(open_checkpoint(tmp_path).infos) == {"a"}, "a number of eleven digits is no count of shards"
        return
    with pytest.raises(CheckpointError, match=r"counts its shards|lacks"):
        open_checkpoint(tmp_path)


INDEX = {
    "surrogate": b'{"weight_map":{"a":"\\ud800"}}',
    "null character": b'{"weight_map":{"a":"a\\u0000b"}}',
    "endless name": b'{"weight_map":{"a":"' + b"x" * 100_000 + b'"}}',
    "escape": b'{"weight_map":{"a":"\\u001b[2J"}}',
    "a line in a file's name": b'{"weight_map":{"a":"x\\n  next: run this"}}',
    "a line in a tensor's name": b'{"weight_map":{"a\\n  next: run this":"x.safetensors"}}',
    "number": b'{"weight_map":{"a":5}}',
    "list": b'{"weight_map":[]}',
    "digits": b'{"weight_map":{"a":' + b"9" * 10_000 + b"}}",
    "many files": json.dumps({"weight_map": {str(number): f"{number}.safetensors" for number in range(20_000)}}).encode(),
    "deep": b'{"weight_map":' * 100_000,
    "twice": b'{"weight_map":{"a":"x","a":"y"}}',
}


@pytest.mark.parametrize("content", INDEX.values(), ids=INDEX)
def test_strange_indices_are_refused_in_few_words(tmp_path: Path, content: bytes) -> None:
    from export.source.checkpoint import open_checkpoint
    from runtime_py.errors import CheckpointError

    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 3000
    assert str(caught.value).count("\n") == 2


STRANGE_NAMES = ["", "a\n  next: run this", "a\x1b[2J", "a\u202eb", "a\u2028b", "." * 20_000, "a" * 501]


@pytest.mark.parametrize("name", STRANGE_NAMES, ids=range(len(STRANGE_NAMES)))
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_that_no_error_can_show(tmp_path: Path, name: str, suffix: str) -> None:
    import torch
    from safetensors.torch import save_file

    from export.source.checkpoint import open_checkpoint
    from runtime_py.errors import CheckpointError

    if suffix == "bin":
        torch.save({name: torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    else:
        save_file({name: torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="calls a tensor") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).isascii()
    assert str(caught.value).count("\n") == 2


def test_a_pickle_that_names_code_is_refused_before_anything_runs(tmp_path: Path) -> None:
    from export.source.checkpoint import open_checkpoint
    from runtime_py.errors import CheckpointError

    class Evil:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path}/PWNED",))

    for content in (archive(pickle.dumps({"a": Evil()})), LEGACY_START + b"." + pickle.dumps(Evil(), 2)):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match="runs code"):
            open_checkpoint(tmp_path)
    assert not (tmp_path / "PWNED").exists()
