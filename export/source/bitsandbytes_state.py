"""What bitsandbytes stores of a quantised matrix, found by name and held against itself before a value is read.

    NAME                                 4-bit codes, two to a byte, the first in the high half; shape (bytes, 1)
    NAME.quant_state.bitsandbytes__nf4   JSON as uint8: quant_type, blocksize, dtype, shape, and of nested scales more
    NAME.absmax                          a scale for each block of the flat matrix: floats, or nested uint8
    NAME.quant_map                       the 16 values of the codes
    NAME.nested_absmax, .nested_quant_map   scales of blocks of scales, and the 256 values of their codes

    P.weight, P.SCB, P.weight_format     LLM.int8(): int8 (rows, columns), a scale for each row, 0 where rows lie in order

Source: bitsandbytes-foundation/bitsandbytes, bitsandbytes/functional.py (``QuantState.as_dict``, ``from_dict``),
bitsandbytes/utils.py (``pack_dict_to_tensor``, ``LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING``), bitsandbytes/nn/modules.py
(``_save_to_state_dict``); huggingface/transformers, src/transformers/quantizers/quantizer_bnb_4bit.py
(``serialized_names``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from export.source.dtypes import ITEM_BYTES
from export.source.tensor_source import TensorInfo, TensorSource
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import parse_json, shortened

if TYPE_CHECKING:
    import torch

STATE = re.compile(r"(?P<matrix>.+)\.quant_state\.bitsandbytes__(?P<kind>\w+)")
KINDS = ("nf4", "fp4")
SCALE, FORMAT = ".SCB", ".weight_format"

BLOCKS = frozenset(1 << power for power in range(5, 13))
"""Elements that may share a scale, 32 to 4096: others its ``dequantize_4bit`` refuses itself."""

DTYPES = ("bfloat16", "float16", "float32")
"""What a matrix was before, and is again once it is read."""

KEYS = {"quant_type", "blocksize", "dtype", "shape"}
NESTED_KEYS = {"nested_blocksize", "nested_dtype", "nested_offset"}

MAX_STATE_BYTES, MAX_AXES, MAX_FLOAT = 2_000, 8, 3.4e38
"""Of the JSON, which has some 200 bytes; of a shape; of a float32."""

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
"""Values of the codes 0 to 15. The library's kernels have them as constants and read no stored table (csrc/kernels.cu,
``nf4_dequantization_lut``, ``fp4_dequantization_lut``; bitsandbytes/functional.py, ``get_4bit_type``)."""

AGAIN = "download the checkpoint again, or export the full-precision checkpoint that it was made of with --precision int4"


@dataclass(frozen=True)
class NestedScales:
    """Scales that are codes themselves: ``table[code] * absmax[block] + offset`` in float32.

    Attributes:
        absmax: name of the float32 tensor (blocks,); ``table``: of float32 (256,).
        blocksize: codes that share one of ``absmax``.
    """

    absmax: str
    table: str
    blocksize: int
    offset: float


@dataclass(frozen=True)
class FourBits:
    """A matrix in 4-bit codes.

    Attributes:
        info: as it is read: real shape, ``dtype`` of its ``quant_state``.
        kind: ``nf4`` or ``fp4``.
        blocksize: elements of the flat matrix that share one of the scales in ``absmax``, a tensor's name.
    """

    info: TensorInfo
    kind: str
    blocksize: int
    absmax: str
    nested: NestedScales | None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors beside the codes."""
        own = (f"{self.info.name}.quant_state.bitsandbytes__{self.kind}", self.absmax, f"{self.info.name}.quant_map")
        return (*own, self.nested.absmax, self.nested.table) if self.nested else own


@dataclass(frozen=True)
class EightBits:
    """A matrix of LLM.int8(), read as float32; ``scale`` names the tensor of its rows' scales."""

    info: TensorInfo
    scale: str
    parts: tuple[str, ...]


@cache
def code_values(kind: str) -> torch.Tensor:
    """The values of the codes 0 to 15, float32 (16,); one tensor for all who ask."""
    import torch

    values = torch.tensor(NF4 if kind == "nf4" else FP4, dtype=torch.float64).float()
    return values + 0.0  # without the sign of zero, which the library's own table has not


def find(source: TensorSource) -> dict[str, FourBits | EightBits]:
    """Every matrix that bitsandbytes has quantised, by the name of its codes.

    Raises:
        CheckpointError: what belongs to one is missing, damaged, or does not fit the rest.
    """
    found: dict[str, FourBits | EightBits] = {}
    for name, info in source.infos.items():
        matrix: FourBits | EightBits | None = None
        if state := STATE.fullmatch(name):
            matrix = _four_bits(source, info, state["matrix"], state["kind"])
        elif name.endswith(SCALE):
            matrix = _eight_bits(source, info)
        if matrix is not None and found.setdefault(matrix.info.name, matrix) is not matrix:
            raise _unsound(matrix.info, "one quantised form of it", "two")
    return found


def _unsound(info: TensorInfo, expected: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"{info.name} ({info.file.name}) is no sound matrix of bitsandbytes", f"{expected}; found {found}", AGAIN
    )


def _part(infos: Mapping[str, TensorInfo], name: str, of: TensorInfo) -> TensorInfo:
    if name not in infos:
        raise _unsound(of, f"the tensor {shortened(name)} beside it", "none")
    return infos[name]


def _require(part: TensorInfo, of: TensorInfo, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if part.shape != shape or part.dtype not in dtypes:
        wanted = f"{part.name} of {' or '.join(dtypes)}, shape {list(shape)}"
        raise _unsound(of, wanted, f"{part.dtype}, shape {shortened(list(part.shape))}")


def _four_bits(source: TensorSource, state: TensorInfo, name: str, kind: str) -> FourBits:
    infos = source.infos
    codes = _part(infos, name, state)
    if kind not in KINDS:
        raise _unsound(codes, f"a quant_type of {' or '.join(KINDS)}", kind)
    told = _State.read(source, state, codes)
    if told.kind != kind:
        raise _unsound(codes, f"the quant_type {kind}, as its name says", told.kind)
    count, stored = math.prod(told.shape), codes.nbytes
    if codes.shape != (stored // ITEM_BYTES.get(codes.dtype, 1), 1) or stored != (count + 1) // 2:
        expected = f"a column of {(count + 1) // 2} bytes for the shape {list(told.shape)}"
        raise _unsound(codes, expected, f"{stored} bytes, {codes.dtype} of shape {shortened(list(codes.shape))}")
    table = _part(infos, f"{name}.quant_map", codes)
    _require(table, codes, (16,), DTYPES)
    _check_values(source, table, codes, kind)
    blocks = -(-count // told.blocksize)
    absmax = _part(infos, f"{name}.absmax", codes)
    _require(absmax, codes, (blocks,), ("uint8",) if told.nested else DTYPES)
    nested = None
    if told.nested:
        scales, values = (_part(infos, f"{name}.nested_{end}", codes) for end in ("absmax", "quant_map"))
        _require(scales, codes, (-(-blocks // told.nested[0]),), ("float32",))
        _require(values, codes, (256,), ("float32",))
        nested = NestedScales(scales.name, values.name, *told.nested)
    item = ITEM_BYTES[told.dtype]
    beside = dict.fromkeys(infos[part].file for part in (state.name, table.name, absmax.name))
    if nested:
        beside |= dict.fromkeys(infos[part].file for part in (nested.absmax, nested.table))
    info = TensorInfo(name, told.dtype, told.shape, codes.file, count * item, tuple(beside), kind)
    return FourBits(info, kind, told.blocksize, absmax.name, nested)


def _check_values(source: TensorSource, table: TensorInfo, codes: TensorInfo, kind: str) -> None:
    """Hold a stored table of values against the library's own, which is used."""
    import torch

    stored = source.read(table.name)
    if not torch.allclose(stored.float(), code_values(kind).to(stored.dtype).float(), rtol=0, atol=1e-6):
        raise _unsound(codes, f"the values of {kind} in {table.name}", "others")


@dataclass(frozen=True)
class _State:
    """The JSON of a ``quant_state``; ``nested``: block size and offset of nested scales."""

    kind: str
    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested: tuple[int, float] | None

    @classmethod
    def read(cls, source: TensorSource, info: TensorInfo, codes: TensorInfo) -> _State:
        if info.dtype != "uint8" or len(info.shape) != 1 or info.nbytes > MAX_STATE_BYTES:
            expected = f"{info.name} of at most {MAX_STATE_BYTES} bytes, uint8"
            raise _unsound(codes, expected, f"{info.dtype} of shape {shortened(list(info.shape))}")
        content = bytes(source.read(info.name).tolist())

        def refusal(what: str, expected: str, again: str) -> CheckpointError:
            return CheckpointError(f"{info.name}: {what}", expected, again)

        values = parse_json(content, info.file, refusal, AGAIN)
        if not isinstance(values, dict) or set(values) - NESTED_KEYS != KEYS:
            keys = sorted(values) if isinstance(values, dict) else values
            raise _unsound(codes, f"a quant_state with {', '.join(sorted(KEYS))}", shortened(keys, 200))
        return cls(
            _chosen(values, "quant_type", KINDS, codes),
            _block(values, "blocksize", codes),
            _chosen(values, "dtype", DTYPES, codes),
            _shape(values["shape"], codes),
            cls._nested(values, codes),
        )

    @staticmethod
    def _nested(values: dict[str, Any], codes: TensorInfo) -> tuple[int, float] | None:
        given = NESTED_KEYS & set(values)
        if not given:
            return None
        if given != NESTED_KEYS:
            raise _unsound(codes, f"all of {', '.join(sorted(NESTED_KEYS))} in its quant_state", ", ".join(sorted(given)))
        _chosen(values, "nested_dtype", ("float32",), codes)
        offset = values["nested_offset"]
        if type(offset) not in (int, float) or not abs(offset) <= MAX_FLOAT:
            raise _unsound(codes, "a finite nested_offset", shortened(offset))
        return _block(values, "nested_blocksize", codes), float(offset)


def _chosen(values: Mapping[str, Any], key: str, choices: tuple[str, ...], codes: TensorInfo) -> str:
    value = values[key]
    if not isinstance(value, str) or value not in choices:
        raise _unsound(codes, f"a {key} of {' or '.join(choices)}", shortened(value))
    return value


def _block(values: Mapping[str, Any], key: str, codes: TensorInfo) -> int:
    value = values[key]
    if type(value) is not int or value not in BLOCKS:
        raise _unsound(codes, f"a {key} of {', '.join(map(str, sorted(BLOCKS)))}", shortened(value))
    return value


def _shape(shape: Any, codes: TensorInfo) -> tuple[int, ...]:
    most = 2 * codes.nbytes
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= MAX_AXES
        or not all(type(size) is int and 0 < size <= most for size in shape)
    ):
        raise _unsound(codes, f"a shape of 1 to {MAX_AXES} sizes, each at least 1 and at most {most}", shortened(shape))
    return tuple(shape)


def _eight_bits(source: TensorSource, scale: TensorInfo) -> EightBits | None:
    """The matrix that an ``SCB`` scales; None where nothing that it could belong to is stored."""
    infos, place = source.infos, scale.name.removesuffix(SCALE)
    codes = infos.get(f"{place}.weight")
    if codes is None or codes.dtype != "int8":
        return None
    if len(codes.shape) != 2:
        raise _unsound(codes, "int8 of two axes", f"shape {shortened(list(codes.shape))}")
    _require(scale, codes, codes.shape[:1], ("float32",))
    layout = infos.get(place + FORMAT)
    if layout is not None:
        _require(layout, codes, (), ("uint8",))
        if int(source.read(layout.name)):
            raise _unsound(
                codes, "rows in order (weight_format 0)", "the layout of one kind of GPU: save it with a later version"
            )
    parts = (scale.name, layout.name) if layout is not None else (scale.name,)
    beside = tuple(dict.fromkeys(infos[part].file for part in parts))
    info = TensorInfo(codes.name, "float32", codes.shape, codes.file, 4 * math.prod(codes.shape), beside, "int8")
    return EightBits(info, scale.name, parts)
