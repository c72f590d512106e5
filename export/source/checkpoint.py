"""Open a checkpoint folder whatever weight files it holds; see docs/checkpoints.md for the order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from export.source.adapter_folder import refuse_adapter
from export.source.bitsandbytes_source import dequantised
from export.source.links import require_allowed
from export.source.located_source import LocatedSource, LocatedTensor
from export.source.pickle_reader import read_catalogue
from export.source.problems import named
from export.source.safetensors_reader import read_header
from export.source.shard_index import MAX_SHARDS, check_shards, read_index, shard_paths
from export.source.tensor_source import TensorInfo, TensorSource
from export.source.training_names import plain_names
from export.source.weight_endings import OTHER_WEIGHTS, converted, what_to_name
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "*.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model*.bin",
    "adapter*.bin",
)
"""Glob patterns in order of preference; the first that finds something is the checkpoint, and the rest is not read."""

DEEPSPEED = "zero_to_fp32.py"
"""What DeepSpeed puts beside the parts that each process saved, and what joins them (deepspeedai/DeepSpeed,
deepspeed/utils/zero_to_fp32.py: the folder, and where to write)."""

_SHARD = re.compile(r"-(\d{1,6})-of-(\d{1,6})\.[a-z]+$")
"""Shard counts have at most six digits; a longer number is part of a name like any other."""

_READERS: dict[str, Callable[[Path], list[LocatedTensor]]] = {
    ".safetensors": read_header,
    ".bin": read_catalogue,
    ".pt": read_catalogue,
    ".pth": read_catalogue,
}


def open_checkpoint(folder: Path, adapters: bool = False) -> TensorSource:
    """The tensors of a checkpoint folder, under their names without what training frameworks add; what bitsandbytes has
    quantised by the values that its codes stand for.

    Args:
        adapters: the published checkpoint holds adapters, which the family reads (`export.source.training_names`).

    Raises:
        CheckpointError: the folder holds no weights, or weights that are damaged, incomplete, unsafe or not merged.
    """
    if not adapters:
        refuse_adapter(folder)
    return plain_names(dequantised(_open_weights(folder)), adapters)


def _open_weights(folder: Path) -> TensorSource:
    for pattern in WEIGHT_FILES:
        files = sorted(path for path in folder.glob(pattern) if not path.is_dir())
        for file in files:
            require_allowed(file, folder)
        if files and pattern.endswith(".index.json"):
            return open_index(files[0])
        if files:
            _check_numbering(files)
            return open_files(files)
    names = sorted(path.name for path in folder.glob("*"))
    made = converted(names)
    advice = "give the folder of a whole checkpoint: config.json and its weight files"
    joins = f"`python {DEEPSPEED} . . --safe_serialization` in that folder joins what DeepSpeed saved; then export it again"
    raise CheckpointError(
        f"{folder} holds no weights{in_other_forms(names)}" if folder.is_dir() else f"{folder} is no folder",
        "one of: " + ", ".join(WEIGHT_FILES),
        joins if DEEPSPEED in names else what_to_name(made) if made else advice,
    )


def in_other_forms(names: Iterable[str]) -> str:
    """What an error adds of files that hold weights in another form; "" where there are none."""
    others = [name for name in names if Path(name).suffix.lower() in OTHER_WEIGHTS]
    return f" in a form that is read, but {named(others)}" if others else ""


def open_files(files: Sequence[Path]) -> TensorSource:
    """The tensors of the files named, one source; the kind of each is told by its suffix."""
    tensors = []
    for file in files:
        if file.suffix not in _READERS:
            raise CheckpointError(
                f"{file} is no weight file", "a name ending in " + ", ".join(_READERS), "name another file"
            )
        tensors += _READERS[file.suffix](file)
    return LocatedSource(tensors)


def open_index(index: Path) -> TensorSource:
    """The tensors that an index names, in its order, checked against the shards."""
    weight_map = read_index(index)
    source = open_files(shard_paths(index, weight_map))
    check_shards(index, weight_map, ((name, info.file) for name, info in source.infos.items()))
    return _Ordered(source, list(weight_map))


def _check_numbering(files: Sequence[Path]) -> None:
    """Shards without an index still say how many they are."""
    numbers = [(int(match[1]), int(match[2])) for file in files if (match := _SHARD.search(file.name))]
    counted = {of for _, of in numbers}
    if len(counted) > 1 or not all(0 < count <= MAX_SHARDS for count in counted):
        raise CheckpointError(
            f"{files[0].parent} counts its shards as {', '.join(map(str, sorted(counted)[-3:]))}",
            f"one count of at most {MAX_SHARDS}, the same in every name",
            "remove the files that do not belong to the checkpoint",
        )
    missing = sorted({(n, of) for of in counted for n in range(1, of + 1)} - set(numbers))
    if missing:
        raise CheckpointError(
            f"{files[0].parent} lacks {len(missing)} shard(s): " + ", ".join(f"{n} of {of}" for n, of in missing[:20]),
            f"every shard that the names count; found {len(numbers)}",
            "download the missing files",
        )


class _Ordered:
    """A source whose tensors are listed in another order."""

    def __init__(self, source: TensorSource, names: Sequence[str]) -> None:
        self._source = source
        self.infos: Mapping[str, TensorInfo] = {name: source.infos[name] for name in names}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._source.read(name, start, stop)


def joined(sources: Mapping[str, TensorSource]) -> TensorSource:
    """Several checkpoints as one: each name is its source's key followed by the published name (``vit.`` + name).

    Raises:
        CheckpointError: two prefixes make the same name.
    """
    return _Joined(sources)


class _Joined:
    def __init__(self, sources: Mapping[str, TensorSource]) -> None:
        self._places: dict[str, tuple[TensorSource, str]] = {}
        infos: dict[str, TensorInfo] = {}
        for prefix, source in sources.items():
            for name, info in source.infos.items():
                full = prefix + name
                if full in infos:
                    raise CheckpointError(
                        f"{full} stands for two tensors, in {infos[full].file} and {info.file}",
                        "prefixes that keep the parts apart",
                        "check the family's open_source",
                    )
                infos[full] = replace(info, name=full)
                self._places[full] = (source, name)
        self.infos: Mapping[str, TensorInfo] = infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        source, inner = self._places[name]
        return source.read(inner, start, stop)
