"""From canonical parameters to the tensors of an MLC package: names, shapes, dtypes, and their bytes chunk by chunk.

`parameter_list` is what the library declares and the directory stores; `stored_tensors` adds the bytes. A quantised
``X.weight`` becomes ``X.q_weight`` (eight codes a word, element 0 in the low nibble) and ``X.q_scale``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.backends.mlc.schemes import Scheme
from export.backends.mlc.shards import HALVED, RAW, StoredTensor
from export.quantisation.codes import Codes, CodeSource, WeightProvider
from export.quantisation.finite import all_finite, cast
from export.quantisation.pack import pack_unsigned
from export.quantisation.spec import Assignment, Storage
from export.source.row_threads import in_order
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

GROUP, PER_WORD = 32, 8
PIECE_BYTES = 4 << 20
"""float32 bytes of the piece of a matrix that one thread works on."""


@dataclass(frozen=True)
class Parameter:
    """One entry of the library's parameter list.

    Attributes:
        name: name in the package.
        target: canonical parameter it comes from.
        part: ``""`` for a whole parameter, ``q_weight`` or ``q_scale`` for half of a quantised one.
        transposed: the half is stored with its axes swapped (q4f16_0 linears).
    """

    name: str
    target: str
    shape: tuple[int, ...]
    dtype: str
    part: str = ""
    transposed: bool = False


def quantised_shapes(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of q_weight and q_scale; a tail group takes four whole words."""
    groups = -(-columns // GROUP)
    return (rows, groups * (GROUP // PER_WORD)), (rows, groups)


def parameter_list(
    shapes: Mapping[str, tuple[int, ...]],
    assignments: Mapping[str, Assignment],
    scheme: Scheme,
    rename: Callable[[str], str] = lambda name: name,
) -> list[Parameter]:
    """The package's parameters for canonical ``shapes``, in their order."""
    listed = []
    for target, shape in shapes.items():
        layer = target.removesuffix(".weight")
        assignment = assignments.get(layer)
        if assignment is None or assignment.storage is not Storage.INT4:
            listed.append(Parameter(rename(target), target, shape, scheme.model_dtype))
            continue
        words, scales = quantised_shapes(*shape)
        swap = scheme.transposed and assignment.layer.role != "embedding"
        if swap:
            words, scales = words[::-1], scales[::-1]
        stem = rename(target).removesuffix(".weight")
        listed.append(Parameter(f"{stem}.q_weight", target, words, "uint32", "q_weight", swap))
        listed.append(Parameter(f"{stem}.q_scale", target, scales, scheme.model_dtype, "q_scale", swap))
    return listed


class ParameterBytes:
    """Reads, casts, quantises and packs parameters for one package, a bounded chunk at a time.

    The scales of the layer packed last are kept, since they are nearly always asked for next.
    """

    def __init__(self, weights: WeightProvider, codes: CodeSource, scheme: Scheme) -> None:
        self.weights, self.codes, self.scheme = weights, codes, scheme
        self._scales: tuple[str, list[bytes]] = ("", [])

    def stored(self, parameters: Iterable[Parameter], halve: bool = False) -> list[StoredTensor]:
        """The parameters with their bytes.

        Args:
            halve: store every float32 tensor as bfloat16, as mlc_llm's converter does; otherwise only the scales
                (which lose nothing by it), so that q0f32 and q4f32_1 packages hold their other weights exactly.
        """
        return [self._stored(parameter, halve) for parameter in parameters]

    def _stored(self, parameter: Parameter, halve: bool) -> StoredTensor:
        halved = halve or parameter.dtype != "float32" or parameter.part == "q_scale"
        encoding = HALVED if halved else RAW
        if parameter.part:

            def chunks() -> Generator[bytes, None, None]:
                return self._quantised(parameter, encoding)
        else:

            def chunks() -> Generator[bytes, None, None]:
                return self._whole(parameter, encoding)

        return StoredTensor(parameter.name, parameter.shape, parameter.dtype, encoding, chunks)

    def _whole(self, parameter: Parameter, encoding: str) -> Generator[bytes, None, None]:
        if not parameter.shape:
            yield file_bytes(self.weights.tensor(parameter.target), parameter, encoding)
        yield from in_order(
            lambda rows: file_bytes(self.weights.rows(parameter.target, *rows), parameter, encoding),
            row_chunks(parameter.shape),
        )

    def _quantised(self, parameter: Parameter, encoding: str) -> Generator[bytes, None, None]:
        layer = parameter.target.removesuffix(".weight")
        if parameter.transposed:
            yield from self._transposed(parameter, layer, encoding)
            return
        if parameter.part == "q_scale" and self._scales[0] == layer:
            yield from self._scales[1]
            self._scales = ("", [])
            return

        def piece(rows: tuple[int, int]) -> tuple[bytes, bytes]:
            codes = self._codes(layer, *rows)
            words = pack(codes).tobytes() if parameter.part == "q_weight" else b""
            return words, file_bytes(codes.scales, parameter, encoding, self.scheme.model_dtype)

        kept = []
        with closing(in_order(piece, row_chunks(self.weights.shape(parameter.target)))) as pieces:
            for words, scales in pieces:
                kept.append(scales)
                yield words if parameter.part == "q_weight" else scales
        if parameter.part == "q_weight":
            self._scales = (layer, kept)

    def _codes(self, layer: str, start: int, stop: int) -> Codes:
        try:
            return self.codes.rows(layer, start, stop)
        except CheckpointError as error:
            raise CheckpointError(f"{layer}.weight: {error.what}", error.expected, error.next_step) from error

    def _transposed(self, parameter: Parameter, layer: str, encoding: str) -> Iterator[bytes]:
        codes = self.codes.rows(layer, 0, self.weights.shape(parameter.target)[0])
        if parameter.part == "q_weight":
            # eight codes of one row make a word first; then the words' axes are swapped, not the codes'
            yield np.ascontiguousarray(pack(codes).view("<u4").T).tobytes()
        else:
            yield file_bytes(codes.scales.T.contiguous(), parameter, encoding, self.scheme.model_dtype)


def row_chunks(shape: Sequence[int], budget: int = PIECE_BYTES) -> list[tuple[int, int]]:
    """Row ranges of a matrix so that each holds at most ``budget`` float32 bytes (at least one row)."""
    if not shape:
        return []
    step = max(1, budget // max(4 * math.prod(shape[1:]), 1))
    return [(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]


def pack(codes: Codes) -> np.ndarray:
    """uint8 (rows, groups * 16): two codes a byte, low nibble first, which read as little-endian words of eight codes."""
    return pack_unsigned(codes.codes, 4).numpy()


def file_bytes(tensor: Tensor, parameter: Parameter, encoding: str, dtype: str = "") -> bytes:
    """A tensor cast to the model dtype, as its file bytes.

    Raises:
        CheckpointError: a value is not finite in that dtype.
    """
    import torch

    dtype = dtype or parameter.dtype
    stored = cast(tensor, getattr(torch, dtype)).contiguous()
    if not all_finite(stored):
        raise CheckpointError(
            f"{parameter.target} holds a value that is not finite in {dtype}",
            f"values within the range of {dtype}",
            "choose q4f32_1 (or fp32), or check the checkpoint",
        )
    if dtype == "float32":
        values = stored.numpy()
        return bfloat16_bits(values).tobytes() if encoding == HALVED else values.tobytes()
    # a view of another item size needs an axis, which a scalar has not
    return (stored if stored.ndim else stored[None]).view(torch.uint8).numpy().tobytes()


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits, to nearest even; values beyond the largest bfloat16 are truncated to it."""
    bits = values.view(np.uint32)
    limit = np.uint32(0x7F7F0000).view(np.float32)
    # half of the last bit that stays, less one where that bit is even: ties go to even. Above `limit` it would carry
    # into infinity
    bias = np.where(np.abs(values) < limit, ((bits >> 16) & 1) + np.uint32(0x7FFF), np.uint32(0))
    return ((bits + bias) >> 16).astype("<u2")
