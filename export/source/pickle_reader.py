"""``pytorch_model*.bin``: torch.save files, catalogued without loading a tensor and without running their code.

``torch.load(weights_only=True, mmap=True)`` is safe too, but maps the file whole: reading a 1.3 GB one row by row leaves
1.3 GB resident, and 11 MB here (measured with torch 2.13); it maps nothing of the older layout, and takes the memory that a
pickle asks for. The tests hold both readings against each other.

Two layouts are read, both by `PickleProgram`: the zip archive of PyTorch 1.6 and later (``data.pkl`` beside one stored
member per storage), and the sequence of pickles before it (the storages follow the last pickle). Source: pytorch/pytorch,
torch/serialization.py (``_save``, ``_legacy_save``) and caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from export.source.dtypes import ITEM_BYTES
from export.source.file_ranges import DOWNLOAD_AGAIN, file_size, read_into, unreadable
from export.source.located_source import LocatedTensor, is_contiguous, require_plain_name
from export.source.pickle_program import Budget, PickleProgram
from export.source.pickle_records import ADMITTED, Storage, StridedTensor, storage_of
from export.source.tensor_source import TensorInfo
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import shortened

WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which training scripts put the state dictionary, beside optimiser states and counters."""

MAX_PICKLE_BYTES = 32_000_000
MAX_LINE_BYTES = 10_000
MAX_DIRECTORY_BYTES = 4_000_000
"""Of a zip archive's list of members: some 60,000 storages; each takes ten times as much memory."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LEGACY_PROTOCOL = 1001

_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    LookupError,
    EOFError,
    RuntimeError,
    OverflowError,
    MemoryError,
)
"""What ``zipfile`` raises for a damaged archive, depending on where the damage is."""


def read_catalogue(file: Path) -> list[LocatedTensor]:
    """The tensors of one file in the order of its dictionary."""
    file_size(file)
    try:
        with file.open("rb") as handle:
            start = handle.read(len(LEGACY_START))
            handle.seek(0)
            if start.startswith(b"PK\x03\x04"):
                value, offsets = _read_archive(file, handle)
            elif start == LEGACY_START:
                value, offsets = _read_sequence(file, handle)
            else:
                raise _damaged(file, "a zip archive or a PyTorch magic number at the start", f"the bytes {start.hex()}")
    except OSError as error:
        raise unreadable(file, error) from error
    return [_locate(file, name, tensor, offsets) for name, tensor in _tensors(file, value).items()]


def _damaged(file: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(f"{file} is no sound file of torch.save", f"{expected}; found {found}", DOWNLOAD_AGAIN)


def _read_archive(file: Path, handle: IO[bytes]) -> tuple[Any, dict[str, int]]:
    """The value of ``data.pkl``, and the file offset of every storage it names."""
    reads = _BoundedReads(handle, MAX_DIRECTORY_BYTES)
    try:
        archive = zipfile.ZipFile(reads)  # type: ignore[call-overload]
        reads.limit = MAX_PICKLE_BYTES
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise _damaged(file, "every member of the archive once", "two of one name")
        programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(programs) != 1:
            raise _damaged(file, "one data.pkl in the archive", f"{len(programs)}")
        prefix = programs[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in members:
            raise _damaged(file, "a state dictionary", "a TorchScript program")
        _check_stored(file, members[programs[0]])
        if members[programs[0]].file_size > MAX_PICKLE_BYTES:
            raise _damaged(file, f"data.pkl of at most {MAX_PICKLE_BYTES} bytes", f"{members[programs[0]].file_size}")
        _check_byte_order(file, archive, members.get(f"{prefix}byteorder"))
        text = archive.read(programs[0])
    except _ARCHIVE_ERRORS as error:
        raise _damaged(file, "a whole zip archive", f"one that is not ({error})") from error

    offsets: dict[str, int] = {}

    def storage(persistent_id: Any) -> Storage:
        named = storage_of(persistent_id)
        member = members.get(f"{prefix}data/{named.key}")
        if member is None or member.file_size != named.nbytes:
            size = "no such member" if member is None else f"{member.file_size} bytes"
            raise _damaged(file, f"{named.nbytes} bytes in {prefix}data/{named.key}", size)
        if named.key not in offsets:
            _check_stored(file, member)
            offsets[named.key] = _member_offset(file, member)
        return named

    return PickleProgram(file, ADMITTED, storage).run(io.BytesIO(text)), offsets


def _check_stored(file: Path, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise _damaged(file, f"{member.filename} stored as it is", "a compressed or encrypted member")


def _check_byte_order(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo | None) -> None:
    if member is not None:
        _check_stored(file, member)
        order = archive.open(member).read(16).strip()
        if order != b"little":
            raise CheckpointError(
                f"{file} was written on a machine of byte order {order.decode('ascii', 'replace')!r}",
                "little-endian tensors",
                "load and save it again with torch on a little-endian machine",
            )


def _member_offset(file: Path, member: zipfile.ZipInfo) -> int:
    """Offset of a member's first byte: behind its local header, whose name and padding have lengths of their own."""
    header = bytearray(30)
    read_into(file, member.header_offset, memoryview(header))
    signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
    offset = member.header_offset + 30 + name_length + extra_length
    if signature != b"PK\x03\x04" or offset + member.file_size > file_size(file):
        raise _damaged(file, f"{member.file_size} bytes of {member.filename} at offset {offset}", "the file's end before it")
    return offset


class _BoundedReads:
    """A file whose reads are refused before they are allocated when they are absurdly long."""

    def __init__(self, handle: IO[bytes], limit: int = MAX_PICKLE_BYTES) -> None:
        self._handle, self.limit = handle, limit
        self.tell, self.seek = handle.tell, handle.seek

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        if count > self.limit:
            raise ValueError(f"{count} bytes in one piece")
        data = self._handle.read(self.limit + 1 if count < 0 else count)
        if len(data) > self.limit:
            raise ValueError(f"more than {self.limit} bytes in one piece")
        return data

    def readline(self) -> bytes:
        line = self._handle.readline(MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return line


def _read_sequence(file: Path, handle: IO[bytes]) -> tuple[Any, dict[str, int]]:
    """The fourth pickle's value, and the file offset of every storage it names, which lie behind the fifth."""
    storages: dict[str, Storage] = {}

    def storage(persistent_id: Any) -> Storage:
        named_storage = storage_of(persistent_id)
        if storages.setdefault(named_storage.key, named_storage) != named_storage:
            raise ValueError(f"storage {named_storage.key} given two sizes")
        return named_storage

    budget = Budget()

    def run() -> Any:
        return PickleProgram(file, ADMITTED, storage, budget).run(_BoundedReads(handle))  # type: ignore[arg-type]

    magic, protocol, system = run(), run(), run()
    little = isinstance(system, Mapping) and system.get("little_endian") is True
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not little:
        actual = f"{shortened(protocol)}, {shortened(system)}"
        raise _damaged(file, f"protocol {LEGACY_PROTOCOL}, little-endian", actual)
    value, keys = run(), run()
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or set(keys) != set(storages) or len(keys) != len(storages):
        raise _damaged(file, f"the {len(storages)} storages that the tensors name", "another list of storages")
    offsets, position, size = {}, handle.tell(), file_size(file)
    for key in keys:
        count = bytearray(8)
        read_into(file, position, memoryview(count))
        nbytes = int.from_bytes(count, "little") * storages[key].type.item_bytes
        if nbytes != storages[key].nbytes or position + 8 + nbytes > size:
            actual = f"{nbytes} bytes with {size - position - 8} left in the file"
            raise _damaged(file, f"{storages[key].nbytes} bytes of storage {key}", actual)
        offsets[key] = position + 8
        position += 8 + nbytes
    return value, offsets


def _tensors(file: Path, value: Any) -> dict[str, StridedTensor]:
    """The state dictionary: the value itself, or what it holds under one of `WRAPPERS`; what is no tensor is left out."""
    if not isinstance(value, dict):
        raise _damaged(file, "a dictionary of tensors", f"a {type(value).__name__}")
    plain = _only_tensors(value)
    wrapped = {key: _only_tensors(value[key]) for key in WRAPPERS if isinstance(value.get(key), dict)}
    candidates = [tensors for tensors in (plain, *wrapped.values()) if tensors]
    if len(candidates) != 1:
        actual = f"{len(plain)} tensors beside {sum(map(bool, wrapped.values()))} such dictionaries"
        keys = ", ".join(map(shortened, list(value)[:5]))
        raise _damaged(
            file, f"tensors by name, at the top or under one of {', '.join(WRAPPERS)}", f"{actual} (keys {keys} ...)"
        )
    return candidates[0]


def _only_tensors(values: Mapping[Any, Any]) -> dict[str, StridedTensor]:
    return {name: tensor for name, tensor in values.items() if isinstance(name, str) and isinstance(tensor, StridedTensor)}


def _locate(file: Path, name: str, tensor: StridedTensor, offsets: Mapping[str, int]) -> LocatedTensor:
    require_plain_name(name, file)
    item = ITEM_BYTES[tensor.dtype]
    nbytes = item
    for size in tensor.shape:
        nbytes *= size
    stride = None if is_contiguous(tensor.shape, tensor.stride) else tensor.stride
    info = TensorInfo(name, tensor.dtype, tensor.shape, file, nbytes)
    return LocatedTensor(info, offsets[tensor.storage.key] + tensor.offset * item, stride)
