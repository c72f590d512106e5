"""What tests of backends share: memory of this machine in the place of a GPU's, so that what is told to the driver can be
carried out and looked at, and libraries of stages with the packages that have them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.backends.cuda_driver import PitchedCopy
from runtime_py.backends.decoder_library import DecoderLibrary
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import DECODER_LIBRARY, ONNX, VISION_LIBRARY
from runtime_py.backends.vision_library import VisionLibrary
from runtime_py.errors import MachineError
from runtime_py.model import Model
from runtime_py.package import Package, read

ALIGNED = 256
FOREIGN = 0xA5
"""What every byte is before anybody writes it."""


class HostDevice:
    """Does what CUDA's documentation says of the calls that rows of caches take; addresses are real ones."""

    def __init__(self) -> None:
        self.held: dict[int, np.ndarray] = {}

    def make_current(self) -> None:
        return

    def synchronise(self, stream: int) -> None:
        return

    def allocate(self, size: int) -> int:
        room = np.full(size + ALIGNED, FOREIGN, np.uint8)
        address = -(-int(room.ctypes.data) // ALIGNED) * ALIGNED
        self.held[address] = room
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    def clear(self, address: int, size: int, stream: int) -> None:
        self.inside(address, size)[:] = 0

    def copy(self, asked: PitchedCopy, stream: int) -> None:
        assert asked.width <= asked.pitch
        for line in (depth * asked.slice_height + row for depth in range(asked.depth) for row in range(asked.height)):
            begin = line * asked.pitch
            self.inside(asked.target + begin, asked.width)[:] = self.inside(asked.source + begin, asked.width)

    def inside(self, address: int, size: int) -> np.ndarray:
        """These bytes, which lie in one allocation."""
        room = self.held[max(first for first in self.held if first <= address)]
        begin = address - int(room.ctypes.data)
        assert begin + size <= len(room)
        return room[begin : begin + size]


@dataclass(frozen=True)
class Kind:
    """A stage's library.

    Attributes:
        fixture: a package that has one.
        key: of it in the manifest's block.
        attribute: of the backend, where it is; with ``_missing``, why it is not.
        table: of its index, which it has beside parameters.
    """

    fixture: str
    key: str
    attribute: str
    table: str
    opens: Callable[..., Any]

    def __str__(self) -> str:
        return self.key

    def package(self, request: pytest.FixtureRequest) -> Path:
        """The package of all tests, which must not be written to."""
        made = request.getfixturevalue(self.fixture)
        assert isinstance(made, Path)
        return made

    def opened(self, package: Path) -> Any:
        """The library; a test is skipped where it does not run on this processor."""
        given = read(package)
        try:
            return self.opens(given.folder, given.manifest, threads=1)
        except MachineError as error:
            pytest.skip(error.what)

    def of(self, model: Model) -> Any:
        """The library that runs for a model."""
        assert isinstance(model.backend, OrtBackend)
        return getattr(model.backend, self.attribute)

    def altered(self, package: Path, folder: Path, change: Callable[[Any], Any]) -> Package:
        """A copy whose index is changed."""
        copy = read(Path(shutil.copytree(package, folder / "package")))
        index = copy.folder / ONNX.block(copy.manifest)[self.key]["index"]
        told = json.loads(index.read_text(encoding="utf-8"))
        change(told)
        index.write_text(json.dumps(told), encoding="utf-8")
        return copy


DECODER = Kind("library_package", DECODER_LIBRARY, "library", "caches", DecoderLibrary)
TOWER = Kind("tower_package", VISION_LIBRARY, "vision", "table", VisionLibrary)
