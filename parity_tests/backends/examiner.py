"""How the packages of one backend are examined; the class as it stands serves a backend of which only its record is known.

Such a backend runs whole, is held against the reference as it is, and shows its stages alone. One that can do more
(`runtime_py.backends.record.Ability`) or rounds in a known way says so in a class of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from parity_tests.judging.standards import Standard
from runtime_py.backends.base import Arrays, Backend
from runtime_py.backends.record import RuntimeBackend

if TYPE_CHECKING:
    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec
    from parity_tests.check.candidate import Candidate
    from parity_tests.reference.arithmetic import Arithmetic
    from parity_tests.reference.checkpoint_side import Checkpoint
    from runtime_py.package import Package

MANY_ROWS, LIBRARY, TOWER = "many rows", "decoder library", "vision library"
"""What comparisons of a package's second decoder are called, and of its decoder and its vision tower as machine code."""

Rows = Mapping[str, Mapping[str, str]]
"""A manifest's assignments: layer name to ``storage``, ``grid`` and ``reason``."""


class NotShown(Exception):
    """A side has no such value, or shows none there; the text says which. An array that needs it is told as not probed."""


@runtime_checkable
class BlockOutputs(Protocol):
    """A runtime backend that can give the outputs of the blocks inside a stage."""

    def block_outputs(self, stage: str, inputs: Arrays) -> Mapping[str, np.ndarray]:
        """Block name to output for given stage inputs; the decoder runs on an empty cache."""
        ...


class StageView(Protocol):
    """One stage of a package, opened for looking inside."""

    stage: str

    def blocks(self, inputs: Arrays) -> Mapping[str, np.ndarray]:
        """Outputs of its blocks, by block."""
        ...

    def between(self, inputs: Arrays, good: str, bad: str) -> list[np.ndarray]:
        """All float values made from block ``good`` to block ``bad``; "" stands for the stage's inputs and for its end."""
        ...

    def values(self, inputs: Arrays, paths: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Values by module path, as export.modules names them.

        Raises:
            NotShown: there is no such value.
        """
        ...


class Examiner:
    """What comparisons ask about a backend."""

    full_precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    """Precisions whose packages hold and compute nothing but float32."""

    shows_values: ClassVar[bool] = False
    """Whether `stage_view` gives values inside a stage."""

    rebuilt: ClassVar[bool] = False
    """Whether `block_outputs` run the package's numbers in code that was built anew, beside the package's own."""

    def __init__(self, record: RuntimeBackend | None) -> None:
        """Examine packages of one backend.

        Args:
            record: None for the reference's own backend in a package's place.
        """
        self.record = record

    def block(self, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """This backend's block of a manifest."""
        return {} if self.record is None else self.record.block(manifest)

    @property
    def record_name(self) -> str:
        """The backend's name, as calibrations have it.

        Raises:
            AssertionError: the reference has none.
        """
        assert self.record is not None, "the reference's own backend has no name"
        return self.record.name

    # how close

    def float_standard(self, side: Candidate) -> Standard:
        """How close a package without integers must be to the full-precision reference."""
        return Standard.FP32 if side.manifest["precision"] in self.full_precisions else Standard.FP16

    def implementation_standard(self, side: Candidate) -> Standard:
        """How close a package with integers must be to the reference that holds the same integers."""
        return Standard.STORED_FLOAT16

    # what the files hold

    def stores_roundings(self, side: Candidate) -> bool:
        """Whether the files hold other numbers than the checkpoint, and this backend's roundings are known."""
        return False

    def keeps_bytes(self, side: Candidate) -> bool:
        """Whether the cache holds bytes, with scales of the calibration."""
        return False

    def cache_scales(self, side: Candidate) -> Mapping[str, np.ndarray]:
        """Where `keeps_bytes`, the scales that the decoder's files hold by canonical name: float32 (kv_heads, 1, width)."""
        return {}

    def arithmetic(self, rows: Rows) -> Arithmetic:
        """The deliberate roundings of the files that run here."""
        from parity_tests.reference.arithmetic import PLAIN

        return PLAIN

    def kernel_arithmetic(self, side: Candidate, spec: ModelSpec) -> Arithmetic | None:
        """`arithmetic` with the roundings that the decoder's kernels choose; None where they choose none that is known."""
        return None

    def tower_arithmetic(self, side: Candidate) -> Arithmetic | None:
        """`arithmetic` with the roundings of the vision tower's inputs; None where it rounds none a token."""
        return None

    # running them

    def open(self, package: Package, own_code: bool) -> Backend:
        """The package's files, whole in memory.

        Args:
            own_code: see `runtime_py.backends.choice.open_backend`.
        """
        assert self.record is not None, "the reference is not opened from a package"
        from runtime_py.backends.choice import open_backend

        return open_backend(package, self.record.runtime_name, own_code=own_code)

    def open_in_pieces(self, package: Package, own_code: bool) -> Backend:
        """The same with a small part of the weights in memory at a time, where the backend can (`Ability.IN_PIECES`)."""
        return self.open(package, own_code)

    def held(self, device_bytes: Mapping[str, int]) -> int:
        """Resident bytes of a package that runs whole, from those of its parts on a device."""
        return sum(device_bytes.values())

    def peak(self, spec: ModelSpec, device_bytes: Mapping[str, int], filled: float) -> int:
        """Resident bytes that `open_in_pieces` adds to a process at its highest, roughly.

        Args:
            device_bytes: the export's prediction by part.
            filled: share of the cache's positions that a check fills.
        """
        return sum(device_bytes.values())

    def exact(self, side: Candidate) -> Candidate | None:
        """The same files computed in float32 throughout (`Ability.EXACT_COPY`); None when nothing can be switched off."""
        return None

    def decoders(self, side: Candidate) -> tuple[Candidate, Mapping[str, Candidate]]:
        """A package whose decoder or tower runs in several ways as a package of each, opened anew: the plain way, and the
        others by what their comparisons are called (`MANY_ROWS`, `LIBRARY`, `TOWER`); else the package itself and no others.
        """
        return side, {}

    def own_numbers(self, side: Candidate, checkpoint: Checkpoint) -> WeightProvider:
        """The checkpoint's weights as the integers of what runs here say them."""
        from parity_tests.reference.checkpoint_side import dequantised

        return dequantised(checkpoint, side.assignments(), self.record_name)

    # looking inside

    def block_outputs(self, side: Candidate, stage: str, inputs: Arrays, spec: ModelSpec | None) -> Mapping[str, np.ndarray]:
        """Block name to output for given stage inputs, of backends that are no `BlockOutputs`; empty where nothing shows.

        Args:
            spec: of the checkpoint that the package was made from, where it is known.
        """
        return {}

    def other_parameters(self, side: Candidate, checkpoint: Checkpoint) -> Sequence[str]:
        """Stored parameters that are not what an export of the checkpoint and its codes writes; () where nobody can say."""
        return ()

    def built_anew(self, side: Candidate, spec: ModelSpec, library: Path) -> Backend | None:
        """The package's numbers in code that is compiled anew from its record; None where there is none, or it is the same.

        Args:
            spec: of the checkpoint that the package was made from.
            library: the file to compile into; it must outlive the backend.
        """
        return None

    def other_graph(self, side: Candidate, spec: ModelSpec) -> tuple[str, str] | None:
        """The first stage whose graph is another than one that is traced anew from the package's record, and what is other;
        None where all are the same, or the backend traces none.

        Raises:
            MachineError: what traced them is not here.
        """
        return None

    def stage_view(self, side: Candidate, stage: str) -> StageView | None:
        """A stage opened for looking inside; None where the backend shows nothing there."""
        return None

    def step_view(self, side: Candidate, cache: Mapping[str, np.ndarray], length: int) -> StageView | None:
        """The decoder on a filled cache, opened in the same way.

        Args:
            cache: what `cache_of` gave.
            length: positions filled.
        """
        return None

    def cache_of(self, state: Any) -> dict[str, np.ndarray]:
        """A copy of a sequence's cache by input name, where the backend shows it."""
        return {}
