"""Short pickles that build something cheap and then have it compared, hashed, shown or gone through for ever."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from export.source.pickle_program import KEY_BITS, PickleProgram
from export.source.pickle_reader import LEGACY_START, read_catalogue
from export.source.pickle_records import ADMITTED, Storage, StorageType, storage_of
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import shortened

SECONDS = 3
LEVELS = 60
PRIME = 2**61 - 1
"""Whole numbers that differ by it have one hash."""

TWICE = b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(LEVELS))
"""The last pair holds the one before it twice, and so on: 2^60 parts once it is written out or hashed."""

ORDERED = b"ccollections\nOrderedDict\n"
SIZE = b"ctorch\nSize\n"
FROM_TYPE = b"ctorch._tensor\n_rebuild_from_type_v2\n"
TENSOR = b"ctorch\nTensor\n"


def integer(value: int) -> bytes:
    """LONG1."""
    return pickle.dumps(value, 2)[2:-1]


def alike(count: int) -> list[bytes]:
    return [integer(PRIME * number) for number in range(1, count)]


PROGRAMS: dict[str, Callable[[], bytes]] = {
    "a name that is nested pairs": lambda: b"X\x01\0\0\0a" + TWICE + b"\x93.",
    "nested pairs as key of a call's dictionary": lambda: ORDERED + b"((" + TWICE + b"0h<N\x86ltR.",
    "nested pairs as a tensor's type": lambda: FROM_TYPE + b"(" + SIZE + TWICE + b")}tR.",
    "keys of one hash": lambda: b"}(" + b"N".join(alike(100_000)) + b"Nu.",
    "members of one hash": lambda: b"\x8f(" + b"".join(alike(100_000)) + b"\x90.",
    "keys of one hash in a call": lambda: ORDERED + b"((" + b"".join(key + b"N\x86" for key in alike(60_000)) + b"ltR.",
    "numbers of one hash in the memo": lambda: b"}" + b"".join(b"p%d\n" % (PRIME * n) for n in range(1, 100_000)) + b".",
    "a text of many characters as shape": lambda: SIZE + b"(X\x80\xc3\xc9\x01" + "\u4e2d".encode() * 10_000_000 + b"tR.",
    "calls in calls": lambda: (
        FROM_TYPE + b"q\x000" + TENSOR + b"q\x010" + b"h\x00" + b"(h\x00h\x01" * 6000 + b")" + b"Nt" * 6000 + b"R."
    ),
    "long arguments inside a call's arguments": lambda: (
        FROM_TYPE
        + b"q\x00("
        + ORDERED
        + TENSOR
        + b"(("
        + b"K\x01N\x86" * 50_000
        + b"ltNtq\x010"
        + b"h\x00h\x01R0" * 50_000
        + b"}."
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_refused_at_once(name: str) -> None:
    program = PROGRAMS[name]()
    began = time.process_time()
    with pytest.raises(CheckpointError, match="damaged pickle") as caught:
        PickleProgram(Path("x.bin"), ADMITTED, storage_of).run(io.BytesIO(b"\x80\x02" + program))
    assert time.process_time() - began < SECONDS
    assert len(str(caught.value)) < 1000


def test_a_protocol_that_is_nested_pairs_is_not_written_out(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(LEGACY_START + b".\x80\x02" + TWICE + b".\x80\x02}.\x80\x02}.\x80\x02].")
    with pytest.raises(CheckpointError, match="protocol 1001"):
        read_catalogue(file)


def test_what_is_shown_of_containers() -> None:
    assert shortened([1, {"a": (2,)}]) == "[1, {'a': (2,)}]"
    assert shortened([[0] * 9]) == "a list of 1"
    assert shortened(list(range(9))) == "a list of 9"


def test_integers_that_may_be_keys() -> None:
    largest = 2**KEY_BITS - 1
    program = b"\x80\x02}(" + integer(largest) + b"N" + integer(-largest) + b"Nu."
    assert PickleProgram(Path("x.bin"), ADMITTED, storage_of).run(io.BytesIO(program)) == {largest: None, -largest: None}


FLOATS = StorageType("float32")
WHOLE = ("storage", FLOATS, "0", "cpu", 6)


def test_a_storage_is_told_by_its_type_key_and_count() -> None:
    for given in (WHOLE, (*WHOLE, None)):
        assert storage_of(given) == Storage("0", FLOATS, 24)


@pytest.mark.parametrize(
    "given",
    [
        list(WHOLE),
        "storage",
        WHOLE[:4],
        (*WHOLE, None, None),
        ("module", *WHOLE[1:]),
        ("storage", "FloatStorage", *WHOLE[2:]),
        ("storage", FLOATS, 0, "cpu", 6),
        (*WHOLE[:4], -1),
        (*WHOLE[:4], 6.0),
        (*WHOLE[:4], True),
        (*WHOLE[:4], 2**63),
        (*WHOLE, ("0", 0, 6)),
    ],
)
def test_another_persistent_id_is_no_storage(given: object) -> None:
    with pytest.raises(ValueError, match="storage"):
        storage_of(given)
