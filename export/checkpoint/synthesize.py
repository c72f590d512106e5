"""Write a random checkpoint in a family's published layout, at full or tiny size, for rehearsals without a download.

    edgeproof synthesize --model minicpm-v --size full -o DIR

The tensors are exactly those that the family's weight map consumes, in the folders and files it is published in. One block
of normal numbers is drawn once, scaled per kind of tensor, and every tensor reads it cyclically from a start of its own, so
that writing costs little more than the disk and memory stays small; only a part published as a pickle (XVERSE-V's adapters)
is held whole. Values are scaled so that a forward pass stays finite; stored rotary frequencies are the real ones. No
tokenizer is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.checkpoint.recognised import recognise_checkpoint
from export.families import registry
from export.families.base import Family
from export.families.names import did_you_mean_model, find
from export.families.published import laid_over
from export.package.disk import require_name
from export.source.safetensors_writer import SHARD_BYTES, Pieces, PlannedTensor, write_sharded
from export.source.tensor_source import EmptySource
from export.source.weight_map import WeightMap
from export.specs import ModelSpec
from runtime_py.errors import CheckpointError, MachineError, UsageError
from runtime_py.memory import human_bytes

DTYPES = ("bfloat16", "float16", "float32")
BLOCK_ELEMENTS = 4_194_301
"""A prime, so that no row length divides it and no two rows of a matrix repeat."""

PICKLE = ".bin"
"""Suffix of a part that is published as a torch file of its own."""

STAGE_ORDER = ("embed_tokens", "decoder", "vision_encoder", "connector")
"""Published wrappers register the language model first."""


@dataclass(frozen=True)
class SynthesisRequest:
    """What to write.

    Attributes:
        variant: "" is the family's first.
        shard_bytes: bounds the data of one file.
        overrides: laid over the published config, table by table.
    """

    model: str
    size: str
    output: Path
    variant: str = ""
    dtype: str = "bfloat16"
    seed: int = 0
    shard_bytes: int = SHARD_BYTES
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SynthesisResult:
    """What was written: tensor, parameter and byte counts."""

    folder: Path
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Distribution:
    """Mean and standard deviation of a tensor's values."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Frequencies:
    """The rotary frequencies theta ** (-2 i / dim), which every layer stores alike."""

    theta: float
    dim: int

    def values(self) -> np.ndarray:
        """float32 (dim / 2,)."""
        return (1.0 / np.float32(self.theta) ** (np.arange(0, self.dim, 2, dtype=np.float32) / self.dim)).astype(np.float32)


Values = Distribution | Frequencies


def synthesize(request: SynthesisRequest) -> SynthesisResult:
    """Write the checkpoint; the folder appears under its name only when it is whole.

    Raises:
        UsageError: unknown model, variant, size or dtype, or the folder exists and is not empty.
        MachineError: the disk is full or the place cannot be written.
    """
    known = find(request.model)
    if known is None:
        listed = "a published checkpoint of one of: " + ", ".join(registry.families())
        raise UsageError(f"--model {request.model} is no model that is known", listed, did_you_mean_model(request.model))
    family = known.family
    if request.dtype not in DTYPES:
        raise UsageError(f"cannot write dtype {request.dtype!r}", "one of: " + ", ".join(DTYPES), "choose one of these")
    config = laid_over(family.published_config(request.variant or known.hub_id, request.size), request.overrides)
    config["torch_dtype"] = request.dtype
    spec = family.spec(config, EmptySource())
    distributions = plan(spec, family.weight_map(spec, EmptySource()))
    tensors = [PlannedTensor(name, request.dtype, shape) for (name, shape) in distributions]
    by_name = {name: distribution for (name, _), distribution in distributions.items()}
    numbers = RandomNumbers(request.seed, request.dtype)

    output = request.output
    require_name(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists already", "a folder that does not exist", "choose another -o, or delete it")
    total = sum(tensor.nbytes for tensor in tensors)
    partial = output.with_name(output.name + ".partial")
    if os.path.lexists(partial):
        raise UsageError(
            f"{partial} exists; the checkpoint would be made there", "no such folder", "move it away, or choose another -o"
        )
    try:
        _make_room(partial, total)
        _write_configs(partial, family.config_files(config))
        for prefix, place in family.parts(config).items():
            part = [tensor for tensor in tensors if tensor.name.startswith(prefix)]
            _write_part(partial / place, part, prefix, lambda t: numbers.pieces(t, by_name[t.name]), request.shard_bytes)
        _check(family, partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise MachineError(
            f"cannot write {output}: {error.strerror or error}",
            f"a folder that can be written, with {human_bytes(total)} free",
            "choose another -o, or free some space",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return SynthesisResult(output, len(tensors), sum(math.prod(tensor.shape) for tensor in tensors), total)


def _write_configs(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_part(place: Path, tensors: Sequence[PlannedTensor], prefix: str, pieces: Pieces, limit: int) -> None:
    """The tensors of one folder, or of one pickle, under their published names (``prefix`` taken off)."""
    named = {tensor.name.removeprefix(prefix): tensor for tensor in tensors}
    renamed = [replace(tensor, name=name) for name, tensor in named.items()]
    if place.suffix == PICKLE:
        place.parent.mkdir(parents=True, exist_ok=True)
        _write_pickle(place, named, pieces)
    else:
        place.mkdir(parents=True, exist_ok=True)
        write_sharded(place, renamed, lambda tensor: pieces(named[tensor.name]), limit)


def _write_pickle(path: Path, tensors: Mapping[str, PlannedTensor], pieces: Pieces) -> None:
    """A torch file whose one key "model" holds the state dict, as upstream's training code saves adapters."""
    import torch

    def made(tensor: PlannedTensor) -> torch.Tensor:
        content = bytearray().join(pieces(tensor))
        return torch.frombuffer(content, dtype=getattr(torch, tensor.dtype)).view(tensor.shape)

    torch.save({"model": {name: made(tensor) for name, tensor in tensors.items()}}, path)


def _make_room(partial: Path, total: int) -> None:
    partial.mkdir(parents=True)
    free = shutil.disk_usage(partial).free
    if free < total + 1_000_000:
        raise MachineError(
            f"{partial.parent} has {human_bytes(free)} free",
            f"{human_bytes(total)} for the checkpoint",
            "choose another -o, or free some space",
        )


def _check(family: Family, folder: Path) -> None:
    """Read the checkpoint back as an export would: it is of this family and lacks nothing."""
    recognised = recognise_checkpoint(folder)
    if recognised.family is not family:
        raise CheckpointError(
            f"{folder} reads as {recognised.family.name}", family.name, "report this as a fault of the family"
        )
    source = recognised.open_source()
    family.weight_map(recognised.spec(source), source).check()


def plan(spec: ModelSpec, weights: WeightMap) -> dict[tuple[str, tuple[int, ...]], Values]:
    """Every published tensor that the rules read, once, in the order of `STAGE_ORDER`, with its values."""
    values: dict[tuple[str, tuple[int, ...]], Values] = {}
    rules = sorted(weights.rules.values(), key=lambda rule: _stage_rank(rule.target))
    for rule in rules:
        for name, shape in zip(rule.sources, rule.source_shapes, strict=True):
            values.setdefault((name, shape), distribution(spec, rule.target, name, shape))
    return values


def _stage_rank(target: str) -> int:
    stage = target.split(".", 1)[0]
    return STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)


def distribution(spec: ModelSpec, target: str, name: str, shape: tuple[int, ...]) -> Values:
    """Values under which activations keep about unit size from end to end and logits spread by about 2.

    Embedded rows have unit size after the model's own scale; a head undoes the model's logit divisor; norms lie near 1,
    biases and position tables near 0; a matrix with K inputs has deviation 1 / sqrt(K).
    """
    if target == "decoder.attend.frequencies":
        return Frequencies(spec.decoder.rope.theta, spec.decoder.rope.dim)
    if target == "embed_tokens.table.weight":
        return Distribution(0.0, 1.0 / spec.embed.scale)
    if target == "decoder.head.weight":
        return Distribution(0.0, 2.0 * spec.decoder.logit_divisor / math.sqrt(shape[-1]))
    if len(shape) < 2:
        return Distribution(0.0, 0.02) if name.endswith("bias") else Distribution(1.0, 0.05)
    if any(word in name.rsplit(".", 1)[-1] for word in ("pos", "query", "token")):
        return Distribution(0.0, 0.2)
    return Distribution(0.0, 1.0 / math.sqrt(math.prod(shape[1:])))


class RandomNumbers:
    """One block of normal numbers, scaled and rounded once per distribution, read cyclically per tensor."""

    def __init__(self, seed: int, dtype: str) -> None:
        self._seed, self._dtype = seed, dtype
        self._block = np.random.default_rng(seed).standard_normal(BLOCK_ELEMENTS, dtype=np.float32)
        self._rounded: dict[Distribution, memoryview] = {}

    def pieces(self, tensor: PlannedTensor, values: Values) -> Iterator[memoryview]:
        """The tensor's bytes; equal seeds and names give equal bytes on every machine."""
        if isinstance(values, Frequencies):
            yield memoryview(_encode(values.values(), self._dtype))
            return
        if values not in self._rounded:
            self._rounded[values] = memoryview(
                _encode(self._block * np.float32(values.deviation) + np.float32(values.mean), self._dtype)
            )
        block = self._rounded[values]
        digest = hashlib.sha256(f"{self._seed}:{tensor.name}".encode()).digest()
        position = int.from_bytes(digest[:8], "little") % BLOCK_ELEMENTS * (len(block) // BLOCK_ELEMENTS)
        left = tensor.nbytes
        while left:
            piece = block[position : position + left]
            yield piece
            left -= len(piece)
            position = 0


def _encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 numbers as little-endian bytes of ``dtype``, rounded to the nearest, ties to even."""
    if dtype == "bfloat16":
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"float16": "<f2", "float32": "<f4"}[dtype]).tobytes()
