"""ONNX packages: graphs that can be cut, changed and looked into, and roundings that are known by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity_tests.backends import examiner
from parity_tests.backends.examiner import Examiner, Rows, StageView
from parity_tests.judging.standards import Standard
from runtime_py.backends.base import Arrays, Backend
from runtime_py.backends.ort import OrtBackend
from runtime_py.backends.records import DECODER_LIBRARY, INT8_CACHE, MANY_ROWS, VISION_LIBRARY
from runtime_py.contracts import DECODER, EMBED

if TYPE_CHECKING:
    from export.quantisation.codes import WeightProvider
    from export.specs import ModelSpec
    from parity_tests.check.candidate import Candidate
    from parity_tests.reference.arithmetic import Arithmetic
    from parity_tests.reference.checkpoint_side import Checkpoint
    from runtime_py.package import Package

EIGHT_BITS = 4
"""The accuracy level at which ONNX Runtime's MatMulNBits rounds its input to int8."""

REQUANTISED = "requantised"
"""In the manifest of a copy in memory: the assignments whose numbers its decoder's codes were made of."""

EXACT_TOKENS = "exact_tokens"
"""In the manifest of a copy in memory: its graphs do not round tokens."""


class OnnxExaminer(Examiner):
    """Judges ONNX Runtime packages: standards by precision, and a look at any value of their graphs."""

    shows_values = True

    # how close

    def implementation_standard(self, side: Candidate) -> Standard:
        """By what rounds: kernels of int4 layers and the tower by choice, operators around bytes, or the cache alone."""
        from export.backends.onnx.record import CALL_GRID

        if self._rounds_blocks(side) or self._rounds_tokens(side):
            return Standard.KERNELS_INT8
        if CALL_GRID in _grids(side):
            return Standard.STORED_INT8
        if self.keeps_bytes(side):
            return Standard.CACHE_INT8
        return Standard.STORED_FLOAT16 if self._half_cache(side) else Standard.STORED_FLOAT32

    def _rounds_blocks(self, side: Candidate) -> bool:
        """Whether kernels choose to round the inputs of int4 layers to 8 bits."""
        return side.block.get("accuracy_level") == EIGHT_BITS and any("int4" in grid for grid in _grids(side))

    def _rounds_tokens(self, side: Candidate) -> bool:
        """Whether the vision tower or a second decoder rounds the inputs of its layers to bytes, a scale a token."""
        from export.backends.onnx.record import FINE_GRID, ROTATED_GRID, TOKEN_GRID

        rounded = (TOKEN_GRID, FINE_GRID, ROTATED_GRID)
        return not side.block.get(EXACT_TOKENS, False) and not _grids(side).isdisjoint(rounded)

    def _half_cache(self, side: Candidate) -> bool:
        """Whether attention works on float16 keys and values."""
        return side.block.get("cache") == "float16"

    # what the files hold

    def stores_roundings(self, side: Candidate) -> bool:
        return side.manifest["precision"] not in self.full_precisions

    def keeps_bytes(self, side: Candidate) -> bool:
        return side.block.get("cache") == INT8_CACHE

    def cache_scales(self, side: Candidate) -> Mapping[str, np.ndarray]:
        import onnx

        from export.graphs.writer import lying
        from export.quantisation.cache_scales import KEY, VALUE

        path = side.folder / side.block["stages"][DECODER]["file"]
        initializers = onnx.load(str(path), load_external_data=False).graph.initializer
        tensors = {each.name: each for each in initializers if each.name.endswith((f".{KEY}", f".{VALUE}"))}
        places = lying(path, [name for name, tensor in tensors.items() if tensor.external_data])
        found = {}
        for name, tensor in tensors.items():
            if name not in places:
                found[f"{DECODER}.{name}"] = onnx.numpy_helper.to_array(tensor)
                continue
            # read here: onnx refuses files that have several names or are links, as those of a hub's cache are
            place, kind = places[name], onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            values = np.fromfile(path.parent / place.file, kind, place.length // kind.itemsize, offset=place.offset)
            found[f"{DECODER}.{name}"] = values.reshape(tuple(tensor.dims))
        return found

    def arithmetic(self, rows: Rows) -> Arithmetic:
        """Computed in float32; inputs that are rounded with one scale a call are, and matrices without codes are float16."""
        from export.backends.onnx.record import CALL_GRID
        from parity_tests.reference.arithmetic import Arithmetic
        from parity_tests.reference.roundings import uint8_call

        inputs = {
            name: uint8_call for name, row in rows.items() if row["grid"] == CALL_GRID and not name.startswith(f"{EMBED}.")
        }
        halves = frozenset(name for name, row in rows.items() if row["storage"] == "fp16" and not row["grid"])
        return Arithmetic(inputs, halves)

    def kernel_arithmetic(self, side: Candidate, spec: ModelSpec) -> Arithmetic | None:
        """Inputs of MatMulNBits in 8 bits with one scale for as many values as a block of its weights has."""
        if not self._rounds_blocks(side):
            return None
        from export.backends.onnx.kernels import EIGHT_BITS_ROUNDED
        from export.package.manifest import assignments_of
        from export.quantisation.grids import GRIDS
        from parity_tests.reference.roundings import Int8Groups

        stored = self.arithmetic(side.assignments())
        inputs = dict(stored.inputs)
        for name, row in assignments_of(spec, side.assignments()).items():
            grid = GRIDS[row.grid] if row.grid and name.startswith(f"{DECODER}.") else None
            if grid is not None and grid.group and (grid.bits == 4 or row.layer.role in EIGHT_BITS_ROUNDED):
                inputs[name] = Int8Groups(grid.group)
        return replace(stored, inputs=inputs)

    def tower_arithmetic(self, side: Candidate) -> Arithmetic | None:
        """Inputs of the tower's layers in 7 or 14 bits, with a scale a token."""
        from export.backends.onnx.record import FINE_GRID, TOKEN_GRID
        from export.backends.onnx.token_rounding import rounding_of

        rows = {name: row["grid"] for name, row in side.assignments().items() if row["grid"] in (TOKEN_GRID, FINE_GRID)}
        if not rows or side.block.get(EXACT_TOKENS, False):
            return None
        rounded = {name: rounding_of(name, grid) for name, grid in rows.items()}
        stored = self.arithmetic(side.assignments())
        return replace(stored, inputs={**stored.inputs, **rounded})

    # running them

    def open_in_pieces(self, package: Package, own_code: bool) -> Backend:
        from parity_tests.check.segmented_ort import SegmentedOrtBackend

        return SegmentedOrtBackend(package.folder, package.manifest, own_code=own_code)

    def peak(self, spec: ModelSpec, device_bytes: Mapping[str, int], filled: float) -> int:
        from parity_tests.check.segmented_ort import predicted_peak

        return predicted_peak(spec)

    def exact(self, side: Candidate) -> Candidate | None:
        """The same graphs without the float16 cache and without inputs in bytes.

        A cache in bytes stays, which the reference has too.
        """
        if not (self._half_cache(side) or self._rounds_blocks(side) or self._rounds_tokens(side)):
            return None
        from parity_tests.check.segmented_ort import SegmentedOrtBackend
        from parity_tests.localize.onnx_blocks import ExactOrtBackend, set_exact

        assert self.record is not None
        cache = side.block.get("cache") if self.keeps_bytes(side) else "float32"
        block = {**side.block, "accuracy_level": 0, "cache": cache, EXACT_TOKENS: True}
        manifest = {**side.manifest, "backends": {self.record.name: block}}
        if isinstance(side.backend, SegmentedOrtBackend):
            return replace(side, manifest=manifest, backend=SegmentedOrtBackend(side.folder, side.manifest, set_exact))
        return replace(side, manifest=manifest, backend=ExactOrtBackend(side.folder, side.manifest))

    def decoders(self, side: Candidate) -> tuple[Candidate, Mapping[str, Candidate]]:
        ways = (MANY_ROWS, DECODER_LIBRARY, VISION_LIBRARY)
        if not any(way in side.block for way in ways):
            return side, {}
        many = side.block.get(MANY_ROWS)
        plain = {name: value for name, value in side.block.items() if name not in ways}
        first, others = self._with_block(side, plain), {}
        if many is not None:
            others[examiner.MANY_ROWS] = self._with_block(side, self._second(side, plain, many))
        for name, key in ((examiner.LIBRARY, DECODER_LIBRARY), (examiner.TOWER, VISION_LIBRARY)):
            if key not in side.block:
                continue
            compiled = self._with_block(side, {**plain, key: side.block[key]})
            missing = _missing(compiled.backend, key)
            if missing:
                first = replace(first, not_run=(*first.not_run, (name, missing)))
            else:
                others[name] = compiled
        return first, others

    @staticmethod
    def _second(side: Candidate, plain: Mapping[str, Any], many: Mapping[str, Any]) -> dict[str, Any]:
        """The block of a package whose only decoder is the second one.

        Raises:
            PackageError: an earlier version wrote it.
        """
        from export.backends.onnx.many_rows import require_turned

        require_turned(side.folder, many["assignments"])
        return {
            **plain,
            "stages": {**plain["stages"], DECODER: {**plain["stages"][DECODER], "file": many["file"]}},
            "block_outputs": {**plain["block_outputs"], DECODER: many["block_outputs"]},
            "assignments": {**side.assignments(), **many["assignments"]},
            REQUANTISED: side.assignments(),
        }

    def _with_block(self, side: Candidate, block: Mapping[str, Any]) -> Candidate:
        from parity_tests.check.segmented_ort import SegmentedOrtBackend

        assert self.record is not None
        kind = SegmentedOrtBackend if isinstance(side.backend, SegmentedOrtBackend) else OrtBackend
        manifest = {**side.manifest, "backends": {**side.manifest["backends"], self.record.name: block}}
        own_code = isinstance(side.backend, OrtBackend) and side.backend.own_code
        return replace(side, manifest=manifest, backend=kind(side.folder, manifest, own_code=own_code))

    def own_numbers(self, side: Candidate, checkpoint: Checkpoint) -> WeightProvider:
        """As the codes say them; of a second decoder, as its codes do, which were made of the first one's numbers."""
        from export.backends.onnx.many_rows import requantised
        from export.quantisation.codes import DequantisedWeights
        from export.quantisation.grids import GRIDS
        from parity_tests.reference.checkpoint_side import codes_of

        first = side.block.get(REQUANTISED)
        if first is None:
            return super().own_numbers(side, checkpoint)
        second = requantised(*codes_of(checkpoint, first, self.record_name))
        return DequantisedWeights(second.weights, second.codes, second.layers, GRIDS)

    def other_parameters(self, side: Candidate, checkpoint: Checkpoint) -> Sequence[str]:
        from parity_tests.localize.onnx_files import other_parameters

        return other_parameters(side, checkpoint)

    def other_graph(self, side: Candidate, spec: ModelSpec) -> tuple[str, str] | None:
        from parity_tests.localize.onnx_graphs import other_graph

        return other_graph(side, spec)

    # looking inside

    def block_outputs(self, side: Candidate, stage: str, inputs: Arrays, spec: ModelSpec | None) -> Mapping[str, np.ndarray]:
        view = self.stage_view(side, stage)
        return {} if view is None else view.blocks(inputs)

    def stage_view(self, side: Candidate, stage: str) -> StageView | None:
        from parity_tests.localize.onnx_blocks import OnnxStage

        return OnnxStage(side, stage)

    def step_view(self, side: Candidate, cache: Mapping[str, np.ndarray], length: int) -> StageView | None:
        from parity_tests.localize.onnx_blocks import OnnxStep

        return OnnxStep(side, cache, length)

    def cache_of(self, state: Any) -> dict[str, np.ndarray]:
        return {name: value.numpy().copy() for name, value in state.buffers.items()}


def _grids(side: Candidate) -> set[str]:
    return {row["grid"] for row in side.assignments().values() if row.get("grid")}


def _missing(backend: Backend, key: str) -> str:
    """Why a library does not run here; empty where it does."""
    assert isinstance(backend, OrtBackend)
    library, missing = {
        DECODER_LIBRARY: (backend.library, backend.library_missing),
        VISION_LIBRARY: (backend.vision, backend.vision_missing),
    }[key]
    return missing if library is None else ""
