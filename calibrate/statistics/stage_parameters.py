"""Parameters of a stage, in memory for one part of it at a time and on the meta device else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from calibrate.statistics.passes import stored_as
from export.quantisation.codes import WeightProvider

if TYPE_CHECKING:
    from torch import nn


class StageParameters:
    """Where the parameters of a module belong.

    Args:
        stage: its name, which canonical names begin with.
        module: the stage on the meta device.
        list_name: of its list of blocks; blocks are loaded one at a time, by their own prefix.
        half: see calibrate.statistics.passes.Passes.
    """

    def __init__(self, stage: str, module: nn.Module, list_name: str, half: bool) -> None:
        self.stage, self.list_name, self.half = stage, list_name, half
        self.places = {
            f"{owner}.{leaf}".lstrip("."): (part, leaf)
            for owner, part in module.named_modules()
            for leaf, _ in part.named_parameters(recurse=False)
        }

    @contextmanager
    def held(self, weights: WeightProvider, module: nn.Module, prefix: str, without: str = "") -> Iterator[None]:
        """A module's parameters in memory while inside; see `load`."""
        self.load(weights, module, prefix, without)
        try:
            yield
        finally:
            self.drop(module, prefix)

    def load(self, weights: WeightProvider, module: nn.Module, prefix: str, without: str = "") -> None:
        """Give a part of the stage its weights.

        Args:
            prefix: of the part's names in the stage; "" for what lies outside the blocks.
            without: a part of it that gets none.
        """
        from torch import nn

        inside = {id(part) for part in module.modules()}
        apart = tuple(f"{part}." for part in (without, "" if prefix else self.list_name) if part)
        for name, (owner, leaf) in self.places.items():
            skipped = name.startswith(apart)
            if id(owner) in inside and name.startswith(prefix) and not skipped:
                value = weights.tensor(f"{self.stage}.{name}").to(stored_as(owner, leaf, self.half)).contiguous()
                setattr(owner, leaf, nn.Parameter(value, requires_grad=False))

    def drop(self, module: nn.Module, prefix: str) -> None:
        """Put a part of the stage back on the meta device."""
        from torch import nn

        inside = {id(part) for part in module.modules()}
        for name, (owner, leaf) in self.places.items():
            if id(owner) in inside and name.startswith(prefix):
                setattr(owner, leaf, nn.Parameter(getattr(owner, leaf).to("meta"), requires_grad=False))
