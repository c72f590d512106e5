"""Published tensor names under what training frameworks put around a model.

    module.NAME                                torch.nn.parallel.DistributedDataParallel, DeepSpeed
    _orig_mod.NAME, a._orig_mod.b              torch.compile, of the whole or of a part
    _fsdp_wrapped_module, _checkpoint_wrapped_module   FullyShardedDataParallel, activation checkpointing
    base_model.model.NAME                      PEFT, after its adapters were merged

They are taken off. Adapters that were not merged are refused by name: what they add is in no tensor of the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from export.source.adapter_folder import MERGE
from export.source.problems import named
from export.source.tensor_source import TensorInfo, TensorSource
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ANYWHERE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts that no published name has, wherever they stand."""

PARALLEL, PEFT = "module.", "base_model.model."
"""Parts in front of every name of a file, or of none."""

ADAPTER = re.compile(
    r"\.(?:lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save|ia3_l)(?:\.|$)"
)
"""Parts of a name that PEFT gives to adapters and to what they stand on (huggingface/peft, src/peft/tuners)."""


def plain_names(source: TensorSource, adapters: bool = False) -> TensorSource:
    """A source under the names that the model's own code gives; the source itself where they are.

    Args:
        adapters: the published checkpoint holds adapters and PEFT's names, which the family reads.

    Raises:
        CheckpointError: adapters that were not merged, or two tensors whose names become one.
    """
    names = {name: ANYWHERE.sub("", name) for name in source.infos}
    prefixes = (PARALLEL,) if adapters else (PARALLEL, PEFT)
    while prefix := next((one for one in prefixes if names and all(name.startswith(one) for name in names.values())), None):
        names = {stored: name.removeprefix(prefix) for stored, name in names.items()}
    if not adapters:
        _refuse_adapters([name for name in source.infos if ADAPTER.search(name)])
    if all(stored == name for stored, name in names.items()):
        return source
    return _Renamed(source, names)


def _refuse_adapters(names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"the checkpoint holds {len(names)} tensor(s) of adapters (LoRA or another of PEFT) that were not merged: "
            + named(names),
            "the weights of a whole model",
            f"merge them: {MERGE}",
        )


def renamed(source: TensorSource, begins: Mapping[str, str]) -> TensorSource:
    """A source whose names begin otherwise; the source itself where none begins so.

    Args:
        begins: the begin of a stored name to what stands in its place; the first that fits.

    Raises:
        CheckpointError: two tensors whose names become one.
    """
    names = {}
    for stored in source.infos:
        old = next((begin for begin in begins if stored.startswith(begin)), "")
        names[stored] = begins[old] + stored.removeprefix(old) if old else stored
    return source if all(stored == name for stored, name in names.items()) else _Renamed(source, names)


class _Renamed:
    """A source under other names, in its own order."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source = source
        self._stored: dict[str, str] = {}
        infos: dict[str, TensorInfo] = {}
        for stored, name in names.items():
            other = self._stored.setdefault(name, stored)
            if other != stored:
                raise CheckpointError(
                    f"{other} and {stored} are one tensor, {name}, without what else stands in their names",
                    "every tensor once",
                    "save the model again from its innermost module: model.module.state_dict()",
                )
            infos[name] = replace(source.infos[stored], name=name)
        self.infos: Mapping[str, TensorInfo] = infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._source.read(self._stored[name], start, stop)


def common_prefix(left_over: list[str], missing: list[str]) -> str:
    """What stands before tensors that are missing without it, where that explains most of what is left over; else ""."""
    wanted = set(missing)
    counts: dict[str, int] = {}
    for name in left_over:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in wanted:
                prefix = ".".join(parts[:cut]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
                break
    prefix, count = max(counts.items(), key=lambda row: row[1], default=("", 0))
    return prefix if 2 * count > min(len(left_over), len(wanted)) else ""
