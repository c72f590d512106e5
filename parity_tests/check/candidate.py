"""The package's side of a comparison: a package opened through the runtime, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.thresholds import Standard
from runtime_py import package as packages
from runtime_py import tokenizer as tokenizers
from runtime_py.backends.base import Backend
from runtime_py.errors import EdgeproofError, MachineError, PackageError
from runtime_py.generation.session import Limits
from runtime_py.model import open_backend, open_processor
from runtime_py.preprocess.base import Processor, TokenizerLike

EXPORT_BACKEND = {"ort": "onnx", "mlc": "mlc", "trt": "tensorrt"}
"""Which block of the manifest a runtime backend reads."""

EIGHT_BITS = 4
"""The accuracy level at which ONNX Runtime's MatMulNBits rounds its input to int8."""

FULL = ("fp32", "q0f32")
WIDE_CODES = ("q4f32_0", "q4f32_1")
"""MLC precisions whose arithmetic is float32."""


@dataclass(frozen=True)
class Candidate:
    """A package ready to be asked.

    Attributes:
        name: the runtime backend, ``ort``, ``mlc`` or ``trt``.
        tokenizer: None when the package holds none.
        not_run: (what, why) for the parts of the package that this machine cannot run.
    """

    folder: Path
    manifest: Mapping[str, Any]
    name: str
    backend: Backend
    processor: Processor
    tokenizer: TokenizerLike | None
    limits: Limits
    not_run: tuple[tuple[str, str], ...] = ()

    @property
    def block(self) -> Mapping[str, Any]:
        """This backend's block of the manifest."""
        return self.manifest["backends"].get(EXPORT_BACKEND.get(self.name, ""), {})

    def with_processor(self, processor: Processor) -> Candidate:
        """The same package behind another processor, the checkpoint's."""
        return replace(self, processor=processor)

    def played_by(self, backend: Backend) -> Candidate:
        """The reference's backend in the package's place, so that both are asked by the same code; a prompt is one call."""
        limits = Limits(self.limits.context, self.limits.context)
        return replace(self, name=backend.name, backend=backend, tokenizer=None, limits=limits, not_run=())

    def assignments(self) -> Mapping[str, Mapping[str, str]]:
        """What every quantisable layer became in the files that run here."""
        return self.block.get("assignments", self.manifest["assignments"])

    def float_standard(self) -> Standard:
        """How close a package without integers must be to the full-precision reference."""
        return Standard.FP32 if self.manifest["precision"] in FULL else Standard.FP16

    def implementation_standard(self) -> Standard:
        """How close a package with integers must be to the reference that holds the same integers."""
        if self.rounds_blocks():
            return Standard.KERNELS_INT8
        if self.name == "ort" and self._int8_rows():
            return Standard.STORED_INT8
        half = self.half_cache() if self.name == "ort" else self.manifest["precision"] not in WIDE_CODES
        return Standard.STORED_FLOAT16 if half else Standard.STORED_FLOAT32

    def stores_roundings(self) -> bool:
        """Whether the files hold other numbers than the checkpoint, and this backend's roundings are known."""
        return self.name == "ort" and self.manifest["precision"] not in FULL

    def rounds_blocks(self) -> bool:
        """Whether kernels choose to round the inputs of int4 layers to 8 bits."""
        chosen = self.block.get("accuracy_level") == EIGHT_BITS
        return self.name == "ort" and chosen and any("int4" in grid for grid in self._grids())

    def half_cache(self) -> bool:
        """Whether attention works on float16 keys and values."""
        return self.name == "ort" and self.block.get("cache") == "float16"

    def _grids(self) -> set[str]:
        return {row["grid"] for row in self.assignments().values() if row.get("grid")}

    def _int8_rows(self) -> bool:
        """Whether there are int8 layers whose input is rounded by operators of the graph, not by a kernel's choice."""
        return any(grid.endswith("int8_row") for grid in self._grids())

    def exact(self) -> Candidate | None:
        """The same graphs and numbers computed in float32 throughout, so that nothing hides behind chosen roundings.

        None when there is no rounding to switch off.
        """
        if not self.half_cache() and not self.rounds_blocks():
            return None
        from parity_tests.check.segmented_ort import SegmentedOrtBackend
        from parity_tests.localize.onnx_blocks import ExactOrtBackend, set_exact

        block = {**self.block, "accuracy_level": 0, "cache": "float32"}
        manifest = {**self.manifest, "backends": {"onnx": block}}
        if isinstance(self.backend, SegmentedOrtBackend):
            return replace(self, manifest=manifest, backend=SegmentedOrtBackend(self.folder, self.manifest, set_exact))
        return replace(self, manifest=manifest, backend=ExactOrtBackend(self.folder, self.manifest))


def open_candidate(folder: Path, backend: str | None = None, *, in_pieces: bool = False) -> Candidate:
    """Open a package, finished or partial, without comparing its hashes; what runs is what is judged.

    When the package's own backend needs a device that is not here and its ONNX graphs can run instead, they do, and the
    engines are listed as not run.

    Args:
        in_pieces: never hold all the package's weights in memory, where ONNX Runtime or TVM runs it.

    Raises:
        UsageError, PackageError, MachineError: from the runtime.
    """
    found = packages.read(folder)
    words = _tokenizer(found.folder)
    name = backend or found.runtime_backend
    skipped: tuple[tuple[str, str], ...] = ()
    try:
        engine = _opened(found, name, in_pieces)
    except MachineError as error:
        if backend is not None or name != "trt" or "onnx" not in found.manifest["backends"]:
            raise
        skipped = (("TensorRT engines", error.what),)
        name, engine = "ort", _opened(found, "ort", in_pieces, providers=["CPUExecutionProvider"])
    processor = open_processor(found, words or _stand_in(found.manifest))  # type: ignore[arg-type]
    return Candidate(found.folder, found.manifest, name, engine, processor, words, found.limits, skipped)


def _opened(found: packages.Package, name: str, in_pieces: bool, **options: Any) -> Backend:
    if in_pieces and name == "ort":
        from parity_tests.check.segmented_ort import SegmentedOrtBackend

        return SegmentedOrtBackend(found.folder, found.manifest)
    if in_pieces and name == "mlc":
        from parity_tests.check.mapped_mlc import MappedMlcBackend

        return MappedMlcBackend(found.folder, found.manifest)
    return open_backend(found, name, **options)


def _tokenizer(folder: Path) -> TokenizerLike | None:
    try:
        return tokenizers.load(folder)
    except PackageError:
        return None


def _stand_in(manifest: Mapping[str, Any]) -> TokenizerLike:
    from parity_tests.check.package_questions import stand_in

    return stand_in(manifest)


def greedy_answer(candidate: Candidate, picture: np.ndarray, text: str, steps: int = 48) -> str:
    """What a package says to a question about a picture, greedily, up to its first stop id.

    Raises:
        EdgeproofError: the package has no tokenizer, or the prompt does not fit.
    """
    from runtime_py.generation.session import Session
    from runtime_py.preprocess.base import Message

    if candidate.tokenizer is None:
        raise PackageError("the package holds no tokenizer", "one of the published forms", "export it with a tokenizer")
    session = Session(candidate.backend, candidate.processor, candidate.limits)
    images, features = session.encode_images([picture])
    layout = candidate.processor.layout(candidate.processor.encode([Message("user", text, (0,))], images), images)
    logits = session.prefill(session.merge(layout, features), layout, "last")
    stops = set(candidate.manifest["generation"]["stop_ids"])
    ids: list[int] = []
    while len(ids) < steps:
        token = int(np.argmax(logits[0, -1]))
        if token in stops or session.room < 1:
            break
        ids.append(token)
        logits = session.step(token)
    return candidate.tokenizer.decode(ids)


__all__ = ["Candidate", "EdgeproofError", "greedy_answer", "open_candidate"]
