"""What a pickled state dictionary is made of: storages, strided tensors, and the published names that rebuild them.

Source of the names and arguments: pytorch/pytorch, torch/_utils.py (``_rebuild_*``), torch/storage.py,
torch/serialization.py (persistent ids).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from export.source.dtypes import ITEM_BYTES
from export.source.pickle_program import Admitted, Call, key


@dataclass(frozen=True)
class StorageType:
    """A storage class of torch; ``dtype`` None is the untyped one, which counts bytes."""

    dtype: str | None

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] if self.dtype else 1


@dataclass(frozen=True)
class DtypeName:
    """A torch dtype by name."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A flat run of bytes in the file: its key, its type, and its bytes."""

    key: str
    type: StorageType
    nbytes: int


@dataclass(frozen=True)
class StridedTensor:
    """A view of a storage; ``offset`` and ``stride`` count elements of ``dtype``."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def last_byte(self) -> int:
        """Bytes of the storage up to the end of the tensor's last element; 0 for an empty tensor."""
        if not all(self.shape):
            return 0
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.offset + steps + 1) * ITEM_BYTES[self.dtype]


_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

_TENSOR_TYPES = frozenset({"torch Tensor", "torch.nn.parameter Parameter"})


def storage_of(persistent_id: Any) -> Storage:
    """The storage that a persistent id of torch.save stands for: ('storage', type, key, location, count[, view])."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6) or persistent_id[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    kind, key, count = persistent_id[1], persistent_id[2], persistent_id[4]
    if not isinstance(kind, StorageType) or not isinstance(key, str) or not _is_count(count):
        raise ValueError("a storage with a wrong type, key or size")
    if len(persistent_id) == 6 and persistent_id[5] is not None:
        raise ValueError("a storage that is a view of another, as versions before 0.4 wrote it")
    return Storage(key, kind, count * kind.item_bytes)


MAX_AXES = 64
MAX_COUNT = 2**63 - 1
"""torch's own limits of a tensor's axes and sizes."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _tensor(storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any, metadata: Any) -> StridedTensor:
    if not isinstance(storage, Storage) or dtype is None:
        raise ValueError("a tensor without a typed storage")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise ValueError("a tensor whose shape and strides disagree")
    if not all(_is_count(value) for value in (offset, *shape, *stride)):
        raise ValueError("a tensor with a negative, fractional or absurd size")
    if len(shape) > MAX_AXES or math.prod(shape) > MAX_COUNT:
        raise ValueError("a tensor of more axes or elements than there can be")
    if isinstance(metadata, dict) and any(metadata.values()):
        raise ValueError("a tensor stored conjugated or negated")
    tensor = StridedTensor(storage, dtype, offset, shape, stride)
    if tensor.last_byte > storage.nbytes:
        raise ValueError(f"a tensor that ends at byte {tensor.last_byte} of a storage of {storage.nbytes} bytes")
    return tensor


def _rebuild_v2(storage, offset, shape, stride, requires_grad=False, hooks=None, metadata=None) -> StridedTensor:
    dtype = storage.type.dtype if isinstance(storage, Storage) else None
    return _tensor(storage, dtype, offset, shape, stride, metadata)


def _rebuild_v3(storage, offset, shape, stride, requires_grad, hooks, dtype, metadata=None) -> StridedTensor:
    return _tensor(storage, dtype.name if isinstance(dtype, DtypeName) else None, offset, shape, stride, metadata)


def _rebuild_parameter(data, requires_grad=True, hooks=None, state=None) -> StridedTensor:
    if not isinstance(data, StridedTensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _rebuild_from_type(function, kind, arguments, state) -> Call:
    """A tensor that carries Python attributes, which are dropped."""
    if not isinstance(kind, str) or kind not in _TENSOR_TYPES:
        raise ValueError("a tensor of a class of its own")
    return Call(function, arguments)


def _dictionary(items=()) -> dict[Any, Any]:
    if not isinstance(items, list | tuple | dict):
        raise TypeError(f"a dictionary made of a {type(items).__name__}")
    pairs = items.items() if isinstance(items, dict) else items
    return {key(name): value for name, value in pairs}


def _size(sizes=()) -> tuple[Any, ...]:
    if not isinstance(sizes, list | tuple):
        raise TypeError(f"a shape made of a {type(sizes).__name__}")
    return tuple(sizes)


def _admit(name: str, function) -> tuple[str, Admitted]:
    return name, Admitted(name, function)


ADMITTED: dict[str, Any] = dict(
    [
        _admit("collections OrderedDict", _dictionary),
        _admit("torch Size", _size),
        _admit("torch device", lambda *place: place),
        _admit("torch._utils _rebuild_tensor", _rebuild_v2),
        _admit("torch._utils _rebuild_tensor_v2", _rebuild_v2),
        _admit("torch._utils _rebuild_tensor_v3", _rebuild_v3),
        _admit("torch._utils _rebuild_parameter", _rebuild_parameter),
        _admit("torch._utils _rebuild_parameter_with_state", _rebuild_parameter),
        _admit("torch._tensor _rebuild_from_type_v2", _rebuild_from_type),
    ]
)
"""Every global a pickle may name, by ``module name``."""

ADMITTED |= {name: name for name in _TENSOR_TYPES}
ADMITTED |= {f"torch {name}": DtypeName(name) for name in ITEM_BYTES}
ADMITTED |= {
    f"{module} {name}": StorageType(dtype) for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()
}
ADMITTED |= {"torch.storage UntypedStorage": StorageType(None), "torch UntypedStorage": StorageType(None)}
