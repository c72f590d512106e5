"""The readers that are fuzzed: where each finds its file, what it does with it, what an accepted file is held against."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from parity_tests.laboratory.fuzz import mutations
from parity_tests.laboratory.fuzz.mutations import Mutation
from runtime_py.errors import EdgeproofError

CHECKPOINTS = Path(__file__).parents[3] / "export" / "demo" / "checkpoints"
MOST_BYTES = 64 << 20
"""Of an accepted tensor that is read and compared."""


class Different(Exception):
    """An accepted file was read otherwise than by the published library."""


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        seeds: good files, by the name under which one is put into the folder.
        mutate: makes a strange file of a good one.
        read: reads the folder whose file ``name`` is strange; raises what the reader raises.
        beside: files that stay good, by path in the folder.
    """

    name: str
    seeds: Callable[[], tuple[tuple[str, bytes], ...]]
    mutate: Mapping[str, Mutation]
    read: Callable[[Path, str], None]
    beside: Callable[[], Mapping[str, bytes]] = dict

    def place(self, folder: Path, draw: Random) -> str:
        """Empty the folder, fill it with one strange file among good ones; returns the strange one's name."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, content in self.beside().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        name, content = draw.choice(self.seeds())
        ending = next(ending for ending in self.mutate if name.endswith(ending))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(self.mutate[ending](content, draw))
        return name


def _tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(6, 4),
        "b": torch.arange(12, dtype=torch.int64).reshape(3, 4).T,
        "c": torch.ones(3, dtype=torch.bfloat16),
        "d": torch.zeros(0, 5),
        "e": torch.tensor(2.0),
    }


@cache
def _safetensors() -> tuple[tuple[str, bytes], ...]:
    from safetensors.torch import save

    whole = {name: tensor.contiguous() for name, tensor in _tensors().items()}
    many = {f"model.layers.{index}.weight": whole["b"].clone() for index in range(60)}
    return (("model.safetensors", save(whole, {"format": "pt"})), ("model.safetensors", save(many)))


def _read_safetensors(folder: Path, name: str) -> None:
    from safetensors import safe_open

    from export.source.checkpoint import open_checkpoint

    source = open_checkpoint(folder)
    readable = {key: info for key, info in source.infos.items() if info.nbytes <= MOST_BYTES}
    ours = {}
    for key in readable:
        try:
            ours[key] = source.read(key)
        except EdgeproofError:  # a type of the format that PyTorch has not
            continue
    with safe_open(str(folder / name), "pt") as published:
        if set(published.keys()) != set(source.infos):
            raise Different("other names")
        for key, tensor in ours.items():
            _compare(key, tensor, published.get_tensor(key))


def _compare(name: str, ours: Any, theirs: Any) -> None:
    import torch

    def raw(tensor: Any) -> Any:
        return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.numel()

    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        raise Different(f"{name}: {ours.dtype} {tuple(ours.shape)}, not {theirs.dtype} {tuple(theirs.shape)}")
    a, b = raw(ours), raw(theirs)
    if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        raise Different(f"{name}: other values")


@cache
def _pickles() -> tuple[tuple[str, bytes], ...]:
    import torch

    made = []
    for value, newer in ((_tensors(), True), ({"state_dict": _tensors(), "epoch": 3}, True), (_tensors(), False)):
        out = io.BytesIO()
        torch.save(value, out, _use_new_zipfile_serialization=newer)
        made.append(("pytorch_model.bin", out.getvalue()))
    return tuple(made)


def _pickle_changed(content: bytes, draw: Random) -> bytes:
    zipped = content.startswith(b"PK")
    return mutations.archive_changed(content, draw) if zipped else mutations.opcodes_changed(content, draw)


def _read_pickle(folder: Path, name: str) -> None:
    import torch

    from export.source.checkpoint import open_checkpoint

    source = open_checkpoint(folder)
    ours = {key: source.read(key) for key, info in source.infos.items() if info.nbytes <= MOST_BYTES}
    try:
        theirs = torch.load(folder / name, weights_only=True)
    except Exception:  # the library may refuse more: a damaged checksum, say
        return
    if isinstance(theirs, dict):
        flat = theirs.get("state_dict", theirs)
        for key, tensor in ours.items():
            if isinstance(flat, dict) and isinstance(flat.get(key), torch.Tensor):
                _compare(key, tensor, flat[key])


@cache
def _index() -> tuple[tuple[str, bytes], ...]:
    shards = {"a.weight": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return (("model.safetensors.index.json", json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}).encode()),)


@cache
def _shards() -> Mapping[str, bytes]:
    from safetensors.torch import save

    tensors = _tensors()
    return {
        "model-00001-of-00002.safetensors": save({"a.weight": tensors["a.weight"]}),
        "model-00002-of-00002.safetensors": save({"b": tensors["b"].contiguous()}),
    }


def _read_index(folder: Path, name: str) -> None:
    from export.source.checkpoint import open_index

    source = open_index(folder / name)
    if not set(source.infos) <= {"a.weight", "b"}:
        raise Different(f"tensors that are in no shard: {list(source.infos)[:5]}")


@cache
def _configs() -> tuple[tuple[str, bytes], ...]:
    _read_config(CHECKPOINTS / "minicpm-v", "")  # so that the libraries' own memory counts for no reading
    files = []
    for folder in sorted(path for path in CHECKPOINTS.iterdir() if (path / "config.json").is_file()):
        files.append(("config.json", (folder / "config.json").read_bytes()))
    return tuple(files)


def _read_config(folder: Path, _: str) -> None:
    from export.pipeline import plan
    from export.request import ExportRequest

    plan(ExportRequest(str(folder), "cpu"), None)


@cache
def _tokenizers() -> tuple[tuple[str, bytes], ...]:
    sentencepiece, tokens = CHECKPOINTS / "omnilmm-12b", CHECKPOINTS / "cogvlm2"
    return (
        ("tokenizer.model", (sentencepiece / "tokenizer.model").read_bytes()),
        ("added_tokens.json", (sentencepiece / "added_tokens.json").read_bytes()),
        ("tokenizer_config.json", (sentencepiece / "tokenizer_config.json").read_bytes()),
        ("tokenizer.json", (tokens / "tokenizer.json").read_bytes()),
    )


@cache
def _tokenizer_beside() -> Mapping[str, bytes]:
    return {"tokenizer.model": (CHECKPOINTS / "omnilmm-12b" / "tokenizer.model").read_bytes()}


def _read_tokenizer(folder: Path, name: str) -> None:
    from runtime_py import tokenizer

    if name == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
    words = tokenizer.load(folder)
    for text in ("What colour is it?", "图片 😀", "<s> a  b", "\0\n" * 5):
        ids = words.encode(text)
        words.decode([*ids, -1, 10**9])


@cache
def _pictures() -> tuple[tuple[str, bytes], ...]:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    files = []
    for ending in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        out = io.BytesIO()
        picture.save(out, ending.upper())
        files.append((f"photo.{ending}", out.getvalue()))
    deep = io.BytesIO()
    Image.fromarray(draw.integers(0, 65_536, (20, 20), dtype=np.uint16)).save(deep, "PNG")
    return (*files, ("photo.png", deep.getvalue()))


def _read_picture(folder: Path, name: str) -> None:
    from runtime_py.preprocess.pictures import open_picture

    pixels = open_picture(folder / name)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise Different(f"an array of {pixels.dtype} {pixels.shape}")


JSON = {".json": mutations.json_changed}

CHECKPOINT_SUBJECTS = (
    Subject("safetensors", _safetensors, {".safetensors": mutations.safetensors_changed}, _read_safetensors),
    Subject("pickle", _pickles, {".bin": _pickle_changed}, _read_pickle),
    Subject("index", _index, JSON, _read_index, _shards),
    Subject("config", _configs, JSON, _read_config),
    Subject("tokenizer", _tokenizers, {**JSON, ".model": mutations.protobuf_changed}, _read_tokenizer, _tokenizer_beside),
    Subject("picture", _pictures, {"": mutations.picture_changed}, _read_picture),
)
