"""Weights as data flow: which published tensors feed each of our parameters, and the pure function that joins them.

A family lists one rule per parameter. `WeightMap.check` compares the rules with the checkpoint and with the parameters
the modules declare, and reports everything wrong in one error. `WeightMap.rows` then yields any rows of any parameter
while reading only what those rows need.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from export.source.advice import advice
from export.source.copies import check_copy
from export.source.problems import listed
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
        row_join: pure function of float32 sources that maps the same rows of all `by_rows` sources, and the whole of
            the others, to those rows of the parameter; instead of ``join`` for what is too large to be computed whole.
        by_rows: for each source, whether ``row_join`` takes its rows only.
        parts: rules whose rows follow one another to make this parameter; instead of ``join``.
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    join: Callable[..., torch.Tensor] | None = None
    row_join: Callable[..., torch.Tensor] | None = None
    by_rows: tuple[bool, ...] = ()
    parts: tuple[Rule, ...] = ()


def stack(target: str, parts: Sequence[tuple[str, tuple[int, ...]]]) -> Rule:
    """A parameter whose rows are the rows of ``parts`` (published name, shape), one after the other."""
    return Rule(target, tuple(name for name, _ in parts), _stacked([s for _, s in parts]), tuple(s for _, s in parts))


def stack_rules(target: str, parts: Sequence[Rule]) -> Rule:
    """A parameter whose rows are those of other rules, one after the other, e.g. q, k and v each with its LoRA."""
    return Rule(
        target,
        tuple(name for part in parts for name in part.sources),
        _stacked([part.shape for part in parts]),
        tuple(shape for part in parts for shape in part.source_shapes),
        parts=tuple(parts),
    )


def _stacked(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if not shapes or any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        raise ValueError(f"rows of different shapes cannot be stacked: {list(shapes)}")
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


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


def compute_rows(
    target: str,
    parts: Sequence[tuple[str, tuple[int, ...], bool]],
    shape: tuple[int, ...],
    row_join: Callable[..., torch.Tensor],
) -> Rule:
    """A parameter computed row by row from ``parts`` (published name, shape, whether only its rows are taken).

    For ``W + scale * B @ A``: W and B by rows, A whole, and ``row_join = lambda w, b, a: w + scale * b @ a``.
    """
    flags = tuple(by_rows for _, _, by_rows in parts)
    if any(by_rows and (not stored or stored[0] != shape[0]) for _, stored, by_rows in parts) or not any(flags):
        raise ValueError(f"{target}: sources by rows need the parameter's {shape[:1]} rows, got {[p[1:] for p in parts]}")
    names, shapes = tuple(name for name, _, _ in parts), tuple(stored for _, stored, _ in parts)
    return Rule(target, names, shape, shapes, row_join=row_join, by_rows=flags)


class WeightMap:
    """The rules of one checkpoint, bound to its tensors.

    Args:
        rules: one rule per parameter.
        source: the opened checkpoint.
        ignored: glob patterns of published names that are known and deliberately unused.
        copies: published name to the parameter that a tensor of this name repeats, where it is stored.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        source: TensorSource,
        ignored: Sequence[str] = (),
        copies: Mapping[str, str] | None = None,
    ) -> None:
        self.rules: dict[str, Rule] = {}
        for rule in rules:
            if self.rules.setdefault(rule.target, rule) is not rule:
                raise ValueError(f"two rules for {rule.target}")
        self.source = source
        self._whole: tuple[Rule, torch.Tensor] | None = None
        self._shared: tuple[tuple[str, ...], list[torch.Tensor]] | None = None
        self._lock = threading.Lock()
        """Around both: an export asks from several threads."""
        self.ignored = tuple(ignored)
        self.copies = {name: target for name, target in (copies or {}).items() if name in source.infos}

    def check(self, parameters: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Raise CheckpointError listing missing, left-over, misshapen or mistyped tensors, or for a copy that is none.

        Args:
            parameters: canonical name to shape of every parameter the modules declare, when known.
        """
        infos = self.source.infos
        used = {name for rule in self.rules.values() for name in rule.sources}
        missing = sorted(used - set(infos))
        left_over = [
            name
            for name in sorted(set(infos) - used - set(self.copies))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.ignored)
        ]
        problems = [f"missing: {name}" for name in missing]
        problems += [f"left over: {name} {list(infos[name].shape)}" for name in left_over]
        for rule in self.rules.values():
            for name, shape in zip(rule.sources, rule.source_shapes, strict=True):
                problems += self._tensor_problems(infos.get(name), shape)
        for name, target in self.copies.items():
            problems += self._tensor_problems(infos[name], self.shape(target))
        if parameters is not None:
            problems += [f"no rule for parameter: {name}" for name in sorted(set(parameters) - set(self.rules))]
            problems += [f"rule without parameter: {name}" for name in sorted(set(self.rules) - set(parameters))]
            problems += [
                f"rule shape: {name} gives {list(self.rules[name].shape)}, module wants {list(shape)}"
                for name, shape in parameters.items()
                if name in self.rules and tuple(shape) != self.rules[name].shape
            ]
        problems = list(dict.fromkeys(problems))
        if problems:
            raise CheckpointError(
                f"the checkpoint does not match its config: {len(problems)} problem(s)" + listed(problems),
                "exactly the tensors that the family's weight map names, in the shapes that config.json implies",
                advice(missing, left_over, self._mistyped(), any(0 in infos[name].shape for name in used & set(infos))),
            )
        for name, target in self.copies.items():
            check_copy(self, name, target)

    def _mistyped(self) -> set[str]:
        """Dtypes of tensors that rules read and that are no `FLOATS`."""
        used = {name for rule in self.rules.values() for name in rule.sources}
        return {info.dtype for name, info in self.source.infos.items() if name in used} - FLOATS

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

    def tensor(self, target: str) -> torch.Tensor:
        """The whole parameter: stored dtype where rows are only stacked, float32 where they are computed."""
        return self.rows(target, 0, None)

    def rows(self, target: str, start: int, stop: int | None) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of a parameter, freshly allocated, reading only the published rows behind them.

        A parameter without axes counts as one row. The last parameter computed whole is kept, so that asking for it
        in chunks computes it once. Sources of different dtypes come in the one that holds them all, whatever the rows.

        Raises:
            IndexError: the rows are not rows of this parameter.
        """
        rule = self.rules[target]
        count = rule.shape[0] if rule.shape else 1
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise IndexError(f"rows {start} to {stop} of {target}, which has {count}")
        return self._rows(rule, start, stop)

    def _rows(self, rule: Rule, start: int, stop: int) -> torch.Tensor:
        if rule.join is not None:
            whole = self._computed(rule)
            # a copy: the whole is kept for the next rows, and callers may change theirs in place
            return (whole[start:stop] if rule.shape else whole).clone()
        if rule.row_join is not None:
            return self._joined_rows(rule, start, stop)
        if rule.parts:
            pieces = [self._rows(part, first, last) for part, first, last in _overlaps(rule.parts, start, stop)]
            return _concatenated(pieces, self._dtype(rule), rule.shape)
        if len(rule.sources) == 1:
            return self.source.read(rule.sources[0], start, stop)
        sources = [take(name, name, shape) for name, shape in zip(rule.sources, rule.source_shapes, strict=True)]
        pieces = [self.source.read(part.target, first, last) for part, first, last in _overlaps(sources, start, stop)]
        return _concatenated(pieces, self._dtype(rule), rule.shape)

    def _computed(self, rule: Rule) -> torch.Tensor:
        """The whole of a parameter that its rule computes, from memory when it was the last one."""
        with self._lock:
            kept = self._whole
            if kept is None or kept[0] is not rule:
                assert rule.join is not None
                # the last one goes before the next is read, so that two are not held here
                self._whole = kept = None
                value = rule.join(*(self.source.read(name).float() for name in rule.sources)).contiguous()
                if value.shape != rule.shape:
                    raise ValueError(f"the join of {rule.target} made {list(value.shape)}, not {list(rule.shape)}")
                self._whole = kept = (rule, value)
            return kept[1]

    def _joined_rows(self, rule: Rule, start: int, stop: int) -> torch.Tensor:
        assert rule.row_join is not None
        names = tuple(name for name, by_rows in zip(rule.sources, rule.by_rows, strict=True) if not by_rows)
        with self._lock:
            if self._shared is None or self._shared[0] != names:
                self._shared = None
                self._shared = (names, [self.source.read(name).float() for name in names])
            shared = iter(self._shared[1])
        arguments = [
            self.source.read(name, start, stop).float() if by_rows else next(shared)
            for name, by_rows in zip(rule.sources, rule.by_rows, strict=True)
        ]
        value = rule.row_join(*arguments).contiguous()
        if value.shape != (stop - start, *rule.shape[1:]):
            raise ValueError(f"the row join of {rule.target} made {list(value.shape)} from rows {start} to {stop}")
        return value

    def _dtype(self, rule: Rule) -> torch.dtype:
        """The dtype that holds every row of a rule."""
        import torch

        if rule.join is not None or rule.row_join is not None:
            return torch.float32
        if rule.parts:
            return reduce(torch.promote_types, (self._dtype(part) for part in rule.parts))
        return reduce(torch.promote_types, (getattr(torch, self.source.infos[name].dtype) for name in rule.sources))


def _overlaps(parts: Iterable[Rule], start: int, stop: int) -> Iterator[tuple[Rule, int, int]]:
    """The parts that rows ``start`` to ``stop`` of their stack touch, with the rows of each."""
    offset = 0
    for part in parts:
        first, last = max(start - offset, 0), min(stop - offset, part.shape[0])
        if first < last:
            yield part, first, last
        offset += part.shape[0]


def _concatenated(pieces: Sequence[torch.Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    if not pieces:
        return torch.empty((0, *shape[1:]), dtype=dtype)
    pieces = [piece.to(dtype) for piece in pieces]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
