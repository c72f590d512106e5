"""Read symbols from the objects of a model library (ELF for Android, Mach-O for iOS) and check what packaging needs.

The app finds a library by its marker symbol ``<model_lib>___tvm_ffi__library_bin`` (mlc-ai/mlc-llm,
python/mlc_llm/interface/package.py, validate_model_lib; Mach-O puts one more ``_`` in front).
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from runtime_py.errors import PackageError

MAX_MEMBERS, MAX_MEMBER_BYTES = 64, 1 << 28
"""Of a library's tar; ours have two objects of some megabytes."""

MARKER = "__tvm_ffi__library_bin"
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
MACH_MACHINES = {0x0100000C: "arm64", 0x01000007: "x86_64"}


@dataclass(frozen=True)
class ObjectFile:
    """What one object declares.

    Attributes:
        format: ``elf`` or ``mach-o``.
        machine: ``aarch64``, ``arm64``, ``x86_64``.
        defined, undefined: global symbols, without Mach-O's leading underscore.
    """

    format: str
    machine: str
    defined: frozenset[str]
    undefined: frozenset[str]


def read_object(data: bytes, name: str = "object") -> ObjectFile:
    """Parse a relocatable object.

    Raises:
        PackageError: it is neither a 64-bit little-endian ELF nor Mach-O object.
    """
    try:
        if data[:6] == b"\x7fELF\x02\x01":
            return _read_elf(data)
        if data[:4] == b"\xcf\xfa\xed\xfe":
            return _read_mach(data)
    except (struct.error, ValueError, IndexError) as error:
        raise PackageError(f"{name} is damaged: {error}", "a whole object file", "export the package again") from error
    raise PackageError(f"{name} is no object file", "a 64-bit ELF or Mach-O object", "export the package again")


def _read_elf(data: bytes) -> ObjectFile:
    (machine,) = struct.unpack_from("<H", data, 18)
    # ELF64 header: machine at 18, offset of the section table at 40, size and number of its entries at 58
    (table,) = struct.unpack_from("<Q", data, 40)
    entry, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry) for i in range(count)]
    defined: set[str] = set()
    undefined: set[str] = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        strings = sections[section[6]]
        # an Elf64_Sym takes 24 bytes: name, info, other, section index, value, size
        for at in range(section[4], section[4] + section[5], 24):
            name_at, info, _, index = struct.unpack_from("<IBBH", data, at)
            if info >> 4 in (1, 2) and name_at:  # global, weak
                (undefined if index == 0 else defined).add(_text(data, strings[4] + name_at))
    return ObjectFile("elf", ELF_MACHINES.get(machine, str(machine)), frozenset(defined), frozenset(undefined))


def _read_mach(data: bytes) -> ObjectFile:
    _, machine, _, _, count, _, _ = struct.unpack_from("<7I", data, 0)
    defined: set[str] = set()
    undefined: set[str] = set()
    # load commands follow the header of a 64-bit Mach-O file
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command == 2:  # LC_SYMTAB
            symbols, number, strings, _ = struct.unpack_from("<4I", data, at + 8)
            # a struct nlist_64 takes 16 bytes; N_TYPE of 0 means undefined
            for symbol in range(symbols, symbols + 16 * number, 16):
                name_at, kind, _, _, _ = struct.unpack_from("<IBBHQ", data, symbol)
                if kind & 0x01:  # N_EXT
                    name = _text(data, strings + name_at).removeprefix("_")
                    (undefined if kind & 0x0E == 0 else defined).add(name)
        if size < 8:
            raise ValueError(f"a load command of {size} bytes")
        at += size
    return ObjectFile("mach-o", MACH_MACHINES.get(machine, str(machine)), frozenset(defined), frozenset(undefined))


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def members(tar: Path) -> dict[str, bytes]:
    """Name to content of a library tar.

    Raises:
        PackageError: it is no tar, or holds more than a library does.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(tar) as archive:
            for entry in archive:
                if len(contents) >= MAX_MEMBERS or entry.size > MAX_MEMBER_BYTES:
                    raise ValueError(f"more than {MAX_MEMBERS} members, or one of more than {MAX_MEMBER_BYTES:,} bytes")
                if entry.isfile():
                    contents[entry.name] = archive.extractfile(entry).read()  # type: ignore[union-attr]
    except (tarfile.TarError, ValueError, EOFError, OSError, zlib.error) as error:
        raise PackageError(f"{tar} is no tar of objects: {error}", "a model library", "export the package again") from error
    return contents


def check_library(tar: Path, model_lib: str) -> dict[str, ObjectFile]:
    """Check that the app will find ``model_lib`` in this tar and that nothing but the TVM runtime is missing.

    Raises:
        PackageError: the marker symbol is missing, or symbols outside the C library and TVM are undefined.
    """
    object_files = {name: read_object(data, name) for name, data in members(tar).items()}
    marker = model_lib.replace("-", "_") + "_" + MARKER
    defined = frozenset().union(*(item.defined for item in object_files.values()))
    if marker not in defined:
        raise PackageError(
            f"{tar.name} does not define {marker}", "the marker of its model library", "export the package again"
        )
    foreign = sorted(
        name
        for item in object_files.values()
        for name in item.undefined - defined
        if not name.startswith("TVMFFI") and name not in C_LIBRARY
    )
    if foreign:
        raise PackageError(f"{tar.name} needs {', '.join(foreign)}", "only TVMFFI* and the C library", "report this model")
    return object_files


C_LIBRARY = frozenset({"memset", "memcpy", "memmove", "expf", "erff", "tanhf", "logf", "sinf", "cosf", "powf", "sqrtf"})
"""Functions of the phone's C library that compiled code may call."""
