"""A stage as machine code over the weight files of its graph: what libraries of every stage are opened and called with."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime_py.backends.large_pages import file_bytes
from runtime_py.backends.ort_providers import CPU
from runtime_py.backends.records import ONNX
from runtime_py.backends.tvm_runtime import tvm_ffi
from runtime_py.errors import MachineError, PackageError
from runtime_py.files.json_file import read_json
from runtime_py.package.files import listed_file

log = logging.getLogger(__name__)

Library = TypeVar("Library")

MAX_INDEX = 1 << 22
"""Bytes of an index: a thousand parameters take a hundred thousand."""

ALIGNMENT = 64
"""Bytes, of weights and inputs: TVM compiles its own operators for arrays that lie so; caches our kernels alone read."""

DTYPES = ("float32", "float16", "uint8", "int8")
"""Of parameters."""


class CompiledStage:
    """One library of a package, its index, and the functions that are called.

    Args:
        folder: the package.
        manifest: its manifest.json.
        block: of the manifest: ``libraries`` by variant and their ``index``.
        variant: which of them.
        functions: names of what it must have.
        threads: of reading weights; 0 leaves it to the system.
        optional: names of functions that it may have.

    Attributes:
        index: as the exporter wrote it.
        functions: by name.

    Raises:
        PackageError: library, index and manifest do not fit one another.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        block: Mapping[str, Any],
        variant: str,
        functions: Iterable[str],
        threads: int,
        optional: Iterable[str] = (),
    ) -> None:
        self._ffi = tvm_ffi()
        self._index_file = listed_file(folder, manifest, block["index"])
        self._library = listed_file(folder, manifest, block["libraries"][variant])
        prefix, held = block["index"].rpartition("/")[0], dict[str, np.ndarray]()

        def content(file: str) -> np.ndarray:
            if file not in held:
                held[file] = file_bytes(listed_file(folder, manifest, f"{prefix}/{file}"), threads)
            return held[file]

        self._content = content
        with self.fitting():
            self.index = read_json(self._index_file, MAX_INDEX)
            machine = self._ffi.load_module(str(self._library))["vm_load_executable"]()
            machine["vm_initialization"](1, 0, 2)  # device type kDLCPU, its number, the pooled allocator
            there = [name for name in optional if machine.implements_function(name)]
            self.functions: dict[str, Callable[..., Any]] = {name: machine[name] for name in (*functions, *there)}

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """While an index is read: what does not fit becomes one error."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
            raise PackageError(
                f"{self._library} and {self._index_file.name} do not fit the package: {error}",
                "a library and an index as export wrote them",
                "export the package again",
            ) from error

    def placed(self, row: Iterable[Any]) -> np.ndarray:
        """The weight of a row of the index, as it lies in its file."""
        place = Placed(*row)
        return place.of(self._content(place.file))

    def parameters(self, rows: Iterable[Iterable[Any]]) -> Any:
        """TVM's array of the weights of these rows."""
        return self._ffi.Array([self.tensor(self.placed(row)) for row in rows])

    def tensor(self, array: np.ndarray) -> Any:
        return self._ffi.from_dlpack(array)


class Placed:
    """A parameter: what it is and where it lies."""

    def __init__(self, name: str, dtype: str, shape: list[int], file: str, offset: int) -> None:
        self.name, self.dtype, self.shape, self.file, self.offset = name, dtype, shape, file, offset
        whole = all(isinstance(number, int) and number >= 0 for number in (*shape, offset))
        if dtype not in DTYPES or not whole or offset % ALIGNMENT:
            raise ValueError(f"parameter {name} of {dtype} {shape} at {offset}")

    def of(self, content: np.ndarray) -> np.ndarray:
        length = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        if self.offset + length > len(content):
            raise ValueError(f"parameter {self.name} ends behind its file")
        return content[self.offset : self.offset + length].view(self.dtype).reshape(self.shape)


def aligned(array: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """The array, or a copy of it, of this type and where kernels may read it."""
    # NumPy's own arrays of nothing have steps of nothing, which TVM does not take for compact
    lies_right = array.size and array.__array_interface__["data"][0] % ALIGNMENT == 0
    if array.dtype == kind and array.flags.c_contiguous and lies_right:
        return array
    size = array.size * kind.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT
    copy = room[start : start + size].view(kind).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Place:
    """Where libraries of a package would run.

    Attributes:
        own_code: whether code that the package brings may run.
        provider: what runs the graphs: a library is for the processor's memory.
    """

    folder: Path
    manifest: Mapping[str, Any]
    own_code: bool
    provider: str


def where_it_runs(place: Place, key: str, opened: Callable[[], Library], otherwise: str = "") -> tuple[Library | None, str]:
    """A package's library, where it has one that runs here; else the graph does its work, and a warning says why.

    Args:
        key: of the library in the manifest's block, ``decoder_library``.
        opened: opens it.
        otherwise: what the warning says that it costs.

    Returns:
        the library and "", or None and why not.

    Raises:
        PackageError: library, index and weights do not fit one another.
    """
    if key not in ONNX.block(place.manifest) or place.provider != CPU:
        return None, "the processor runs it alone"
    if not place.own_code:
        missing = "it is code that nobody trusts here; --trust with the hash that its maker published runs it"
    else:
        try:
            return opened(), ""
        except MachineError as error:
            missing = f"{error.what}; {error.next_step}"
    log.warning("the %s of %s does not run%s: %s", key.replace("_", " "), place.folder.name, otherwise, missing)
    return None, missing
