"""Files of torch.save, good, damaged and hostile, against torch.load(weights_only=True)."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.source import located_source
from export.source.dtypes import ITEM_BYTES
from export.source.located_source import LocatedSource
from export.source.pickle_reader import read_catalogue
from export.source.safetensors_reader_test import same_bits
from runtime_py.errors import CheckpointError

DTYPES = sorted(name for name in ITEM_BYTES if hasattr(torch, name) and name not in ("complex32", "float4_e2m1fn_x2"))
UNTYPED = {name for name in DTYPES if name.startswith(("uint", "float8")) and name != "uint8"}
"""Stored in untyped storages, which torch itself cannot load from the old layout."""


def random_tensor(data: st.DataObject, dtype: str) -> torch.Tensor:
    """A view into a random storage: any offset, any strides, overlapping or empty."""
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    stride = data.draw(st.lists(st.integers(0, 7), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 3))
    span = offset + 1 + sum(max(size - 1, 0) * step for size, step in zip(shape, stride, strict=True))
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (span * ITEM_BYTES[dtype],), dtype=torch.uint8)
    return raw.view(getattr(torch, dtype)).as_strided(shape, stride, offset)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_agrees_with_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.setattr(located_source, "SCRATCH_BYTES", data.draw(st.sampled_from([16, 64, 1 << 20])))
    zipped = data.draw(st.booleans())
    state: dict[str, Any] = collections.OrderedDict()
    for index in range(data.draw(st.integers(1, 5))):
        dtype = data.draw(st.sampled_from([name for name in DTYPES if zipped or name not in UNTYPED]))
        value = random_tensor(data, dtype)
        if data.draw(st.booleans()) and value.is_floating_point() and dtype not in UNTYPED:
            value = torch.nn.Parameter(value)
        state[f"t{index}"] = value
        if data.draw(st.booleans()):
            state[f"shared{index}"] = value.detach()[..., :1] if value.ndim else value.detach()
    state["steps"] = 3
    whole = {"model": state, "epoch": 1, "optimizer": {"lr": 0.1}} if data.draw(st.booleans()) else state
    path = tmp_path / "pytorch_model.bin"
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, weights_only=True)
    loaded = loaded.get("model", loaded)
    source = LocatedSource(read_catalogue(path))
    assert list(source.infos) == [name for name in loaded if name != "steps"]
    for name, info in source.infos.items():
        want = loaded[name].detach()
        assert (info.dtype, info.shape) == (str(want.dtype).removeprefix("torch."), tuple(want.shape))
        assert info.nbytes == want.numel() * want.element_size()
        assert same_bits(source.read(name), want), name
        if info.shape:
            start = data.draw(st.integers(0, info.shape[0]))
            stop = data.draw(st.integers(start, info.shape[0]))
            assert same_bits(source.read(name, start, stop), want[start:stop]), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dictionary_of_a_module(tmp_path: Path, protocol: int) -> None:
    """With its metadata attribute, tied parameters and buffers, at every pickle protocol."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(3, 4))
    module[2].weight = module[0].weight
    path = tmp_path / "pytorch_model.bin"
    torch.save(module.state_dict(), path, pickle_protocol=protocol)
    source = LocatedSource(read_catalogue(path))
    assert list(source.infos) == list(module.state_dict())
    for name, want in module.state_dict().items():
        assert same_bits(source.read(name), want)


def test_tensor_with_attributes(tmp_path: Path) -> None:
    value = torch.ones(2)
    value.__dict__["note"] = "kept by torch, dropped here"
    torch.save({"a": value}, tmp_path / "m.bin")
    assert torch.equal(LocatedSource(read_catalogue(tmp_path / "m.bin")).read("a"), torch.ones(2))


def test_rows_of_a_transposed_matrix_read_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(300, 700)
    torch.save({"a": matrix.T}, tmp_path / "m.bin")
    source = LocatedSource(read_catalogue(tmp_path / "m.bin"))
    sizes: list[int] = []
    read_into = located_source.read_into

    def measured(file: Path, offset: int, buffer: memoryview) -> None:
        sizes.append(len(buffer))
        read_into(file, offset, buffer)

    monkeypatch.setattr(located_source, "read_into", measured)
    monkeypatch.setattr(located_source, "SCRATCH_BYTES", 4096)
    assert torch.equal(source.read("a", 10, 17), matrix.T[10:17])
    assert max(sizes) <= 4096


class Runs:
    """Pickles to a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (True, 4), (False, 2)])
def test_pickle_that_runs_code(tmp_path: Path, zipped: bool, protocol: int) -> None:
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    state = {"a": torch.ones(2), "b": Runs(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"runs code: it asks for the Python object posix\.mkdir") as caught:
        LocatedSource(read_catalogue(path))
    assert str(path) in str(caught.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file is hostile"


HOSTILE = {
    "instance opcode": b"\x80\x02(ios\nsystem\nq\x00.",
    "build on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x01aK\x01sb.",
    "call of a type": b"\x80\x02ctorch\nTensor\n)R.",
    "object with NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "extension code": b"\x80\x02\x82\x01.",
    "persistent id that is no storage": b"\x80\x02U\x01aQ.",
    "nested tuple as key": b"\x80\x02}))\x86K\x01s.",
    "no stop": b"\x80\x02}",
    "empty stack": b"\x80\x02.",
    "mark never set": b"\x80\x02t.",
    "string longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "unknown opcode": b"\x80\x02\xff.",
    "memo never set": b"\x80\x02h\x07.",
}


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in members.items():
            out.writestr(f"m/{name}", content)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_program_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "m.bin", {"data.pkl": HOSTILE[name]})
    with pytest.raises(CheckpointError, match=r"m\.bin"):
        read_catalogue(path)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as whole:
        return {name.split("/", 1)[1]: whole.read(name) for name in whole.namelist()}


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.bin"
    torch.save({"a": torch.arange(100.0)}, good)
    members = members_of(good)
    bad = tmp_path / "bad.bin"
    cases: list[tuple[dict[str, bytes], str]] = [
        ({**members, "byteorder": b"big"}, "byte order 'big'"),
        ({**members, "data/0": bytes(399)}, "400 bytes in m/data/0; found 399 bytes"),
        ({name: content for name, content in members.items() if name != "data/0"}, "no such member"),
        ({**members, "constants.pkl": b""}, "TorchScript"),
        ({name: content for name, content in members.items() if name != "data.pkl"}, "one data.pkl.*found 0"),
    ]
    for content, message in cases:
        with pytest.raises(CheckpointError, match=message):
            read_catalogue(archive(bad, content))
    with pytest.raises(CheckpointError, match="compressed"):
        read_catalogue(archive(bad, members, zipfile.ZIP_DEFLATED))
    for name in ("data.pkl", "data/0", "byteorder"):
        with zipfile.ZipFile(bad, "w") as out:
            for member, stored in members.items():
                out.writestr(f"m/{member}", stored, zipfile.ZIP_DEFLATED if member == name else zipfile.ZIP_STORED)
        with pytest.raises(CheckpointError, match=f"m/{name} stored as it is; found a compressed"):
            read_catalogue(bad)
    text = good.read_bytes()
    for length in (0, 3, 30, len(text) // 2, len(text) - 1):
        bad.write_bytes(text[:length])
        with pytest.raises(CheckpointError, match=r"bad\.bin"):
            read_catalogue(bad)


def test_truncated_old_layout(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.bin", tmp_path / "bad.bin"
    torch.save({"a": torch.arange(100.0)}, good, _use_new_zipfile_serialization=False)
    text = good.read_bytes()
    for length in (20, 40, 120, len(text) - 401, len(text) - 1):
        bad.write_bytes(text[:length])
        with pytest.raises(CheckpointError, match=r"bad\.bin"):
            read_catalogue(bad)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1), value=st.integers(0, 255))
def test_any_changed_byte_gives_tensors_or_one_clear_error(tmp_path: Path, position: float, value: int) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2)}, buffer)
    text = bytearray(buffer.getvalue())
    text[int(position * (len(text) - 1))] = value
    path = tmp_path / "m.bin"
    path.write_bytes(text)
    try:
        source = LocatedSource(read_catalogue(path))
    except CheckpointError:
        return
    for name in source.infos:
        source.read(name)


@pytest.mark.parametrize(
    "value", [[torch.ones(1)], {"epoch": 1}, {"model": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, {}]
)
def test_no_state_dictionary(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="tensors"):
        read_catalogue(tmp_path / "m.bin")


def test_view_outside_its_storage(tmp_path: Path) -> None:
    """A program that asks for more than the storage holds, as torch's own check would find."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "good.bin")
    members = members_of(tmp_path / "good.bin")
    program = members["data.pkl"]
    assert program.count(b"K\x04\x85") == 1, "the shape (4,)"
    members["data.pkl"] = program.replace(b"K\x04\x85", b"K\x05\x85")
    with pytest.raises(CheckpointError, match="ends at byte 20 of a storage of 16 bytes"):
        read_catalogue(archive(tmp_path / "bad.bin", members))


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="magic number"):
        read_catalogue(tmp_path / "m.bin")
