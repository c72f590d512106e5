"""Modules that stand for parts of a stage: they capture what a part receives, or return what it gave before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


class _Entered(Exception):
    """Leaves a forward pass at the first block."""


class FirstBlockInput:
    """Stands for the blocks and captures what the first would receive."""

    def __init__(self) -> None:
        self.module = _identity()
        self.module.forward = self._enter  # type: ignore[method-assign]
        self.kept: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def _enter(self, *inputs: Any, **named: Any) -> None:
        self.kept = (inputs, named)
        raise _Entered

    def of(self, stage: nn.Module, call: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            stage(**call)
        except _Entered:
            return self.kept
        raise RuntimeError("the stage never called its first block")


class LastBlockOutput:
    """Stands for the blocks and returns what the last one gave."""

    def __init__(self) -> None:
        self.module = _identity()
        self.module.forward = self._leave  # type: ignore[method-assign]
        self.rows: Any = None

    def _leave(self, x: Any, *rest: Any, **named: Any) -> Any:
        # a decoder's block takes its cache and gives it back; blocks of other stages have none
        return (self.rows, rest[0]) if rest and isinstance(rest[0], tuple) else self.rows

    def of(self, stage: nn.Module, call: dict[str, Any], rows: Tensor) -> Any:
        self.rows = rows
        return first_output(stage(**call))


class LayerInput:
    """Stands for a linear layer: passes its input to a callback, and returns one column of it."""

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        self.module, self.take = _identity(), take
        self.module.forward = self._record  # type: ignore[method-assign]

    def _record(self, x: Tensor) -> Tensor:
        self.take(x)
        return x[..., :1]


def _identity() -> nn.Module:
    from torch import nn

    return nn.Identity()


def first_output(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result
