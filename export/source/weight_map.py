"""Weights as data flow: which published tensors feed each of our parameters, and the pure function that joins them.

A family lists one rule per parameter. `WeightMap.check` compares the rules with the checkpoint and with the parameters
the modules declare, and reports everything wrong in one error. `WeightMap.rows` then yields any rows of any parameter
while reading only what those rows need.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.source.tensor_source import TensorInfo, TensorSource
from runtime_py.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FLOATS = frozenset({"float32", "float16", "bfloat16"})


@dataclass(frozen=True)
class Rule:
    """How one parameter comes from published tensors.

    Attributes:
        target: canonical parameter name, e.g. ``decoder.layers.0.attention.qkv.weight``.
        sources: published names, in the order ``join`` takes them.
        shape: the parameter's shape.
        source_shapes: the shape each source must have.
        join: pure function of the whole source tensors in float32, or None to stack the sources' rows (axis 0).
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    join: Callable[..., torch.Tensor] | None = None


def stack(target: str, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Rule:
    """A parameter whose rows are the rows of ``parts`` (published name, shape), one after the other."""
    tail = parts[0][1][1:]
    rows = sum(shape[0] for _, shape in parts)
    return Rule(target, tuple(name for name, _ in parts), (rows, *tail), tuple(shape for _, shape in parts))


def take(target: str, source: str, shape: tuple[int, ...]) -> Rule:
    """A parameter stored under another name with the same shape."""
    return Rule(target, (source,), shape, (shape,))


def compute(
    target: str,
    parts: Sequence[tuple[str, tuple[int, ...]]],
    shape: tuple[int, ...],
    join: Callable[..., torch.Tensor],
) -> Rule:
    """A parameter computed from whole tensors; for small ones only, since nothing of it is streamed."""
    return Rule(target, tuple(name for name, _ in parts), shape, tuple(s for _, s in parts), join)


class WeightMap:
    """The rules of one checkpoint, bound to its tensors.

    Args:
        rules: one rule per parameter.
        source: the opened checkpoint.
        ignored: glob patterns of published names that are known and deliberately unused.
    """

    def __init__(self, rules: Iterable[Rule], source: TensorSource, ignored: Sequence[str] = ()) -> None:
        self.rules: dict[str, Rule] = {rule.target: rule for rule in rules}
        self.source = source
        self.ignored = tuple(ignored)

    def check(self, parameters: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Raise CheckpointError listing every missing, left-over, misshapen or mistyped tensor.

        Args:
            parameters: canonical name to shape of every parameter the modules declare, when known.
        """
        infos = self.source.infos
        used = {name for rule in self.rules.values() for name in rule.sources}
        problems = [f"missing: {name}" for name in sorted(used - set(infos))]
        problems += [
            f"left over: {name} {list(infos[name].shape)}"
            for name in sorted(set(infos) - used)
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)
        ]
        for rule in self.rules.values():
            for name, shape in zip(rule.sources, rule.source_shapes, strict=True):
                problems += self._tensor_problems(infos.get(name), shape)
        if parameters is not None:
            problems += [f"no rule for parameter: {name}" for name in sorted(set(parameters) - set(self.rules))]
            problems += [f"rule without parameter: {name}" for name in sorted(set(self.rules) - set(parameters))]
            problems += [
                f"rule shape: {name} gives {list(self.rules[name].shape)}, module wants {list(shape)}"
                for name, shape in parameters.items()
                if name in self.rules and tuple(shape) != self.rules[name].shape
            ]
        if problems:
            raise CheckpointError(
                f"the checkpoint does not match its config: {len(problems)} problem(s)\n    " + "\n    ".join(problems),
                "exactly the tensors that the family's weight map names, in the shapes that config.json implies",
                "check that config.json belongs to these weights and that every file was downloaded whole",
            )

    @staticmethod
    def _tensor_problems(info: TensorInfo | None, shape: tuple[int, ...]) -> list[str]:
        if info is None:
            return []
        problems = []
        if info.shape != shape:
            problems.append(f"wrong shape: {info.name} is {list(info.shape)}, expected {list(shape)}")
        if info.dtype not in FLOATS:
            problems.append(f"wrong dtype: {info.name} is {info.dtype}, expected one of {', '.join(sorted(FLOATS))}")
        return problems

    def shape(self, target: str) -> tuple[int, ...]:
        return self.rules[target].shape

    def stored_dtypes(self) -> set[str]:
        """The dtypes the used tensors are stored in."""
        return {self.source.infos[name].dtype for rule in self.rules.values() for name in rule.sources}

    def tensor(self, target: str) -> torch.Tensor:
        """The whole parameter: stored dtype where rows are only stacked, float32 where they are computed."""
        return self.rows(target, 0, self.rules[target].shape[0] if self.rules[target].shape else None)

    def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of a parameter, reading only the published rows behind them."""
        import torch

        rule = self.rules[target]
        if rule.join is not None:
            whole = rule.join(*(self.source.read(name).float() for name in rule.sources)).contiguous()
            return whole[start:stop] if rule.shape else whole
        stop = rule.shape[0] if stop is None else stop
        pieces, offset = [], 0
        for name, shape in zip(rule.sources, rule.source_shapes, strict=True):
            first, last = max(start - offset, 0), min(stop - offset, shape[0])
            if first < last:
                pieces.append(self.source.read(name, first, last))
            offset += shape[0]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def chunk_rows(self, target: str, budget: int) -> list[tuple[int, int]]:
        """Row ranges of a parameter so that each holds at most ``budget`` float32 bytes (at least one row)."""
        shape = self.rules[target].shape
        row_bytes = 4 * math.prod(shape[1:])
        step = max(1, budget // max(row_bytes, 1))
        return [(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]
