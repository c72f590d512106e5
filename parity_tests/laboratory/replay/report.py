"""The comparison as text and as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from parity_tests.laboratory.replay.cells import Cell
from parity_tests.laboratory.replay.difference import HELD, FileClass, KeyChange, PackageDifference

SHOWN = 70
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Result:
    """One cell compared.

    Attributes:
        difference: None where one side has no package; then base_failure or head_failure says why.
    """

    cell: Cell
    difference: PackageDifference | None
    base_failure: str = ""
    head_failure: str = ""


def held_bytes(results: list[Result]) -> int:
    """Bytes changed in graphs and weights; a file that only changed its name counts as one."""
    changes = [c for r in results if r.difference for c in r.difference.changes if c.file_class in HELD]
    return sum(max(change.bytes_changed, 1) for change in changes)


def to_text(results: list[Result], base: str, head: str) -> str:
    """A table by class of file, every file of changed graphs and weights, and the keys that changed."""
    compared = [result for result in results if result.difference]
    lines = [f"{len(compared)} packages of {base} and of {head} compared", "", *_table(compared), ""]
    lines += _failures(results) + _files(compared) + _keys(compared)
    changed = held_bytes(results)
    lines.append(f"graphs and weights: {changed:,} bytes changed" if compared else "nothing was compared")
    return "\n".join(lines)


def to_json(results: list[Result], base: str, head: str) -> str:
    """Everything, for programs."""
    value = {"base": base, "head": head, "bytes_changed": held_bytes(results), "packages": [asdict(r) for r in results]}
    return json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n"


def _table(compared: list[Result]) -> Iterator[str]:
    yield f"{'class':<11}{'files':>7}{'changed':>9}{'bytes':>14}{'bytes changed':>15}"
    for kind in FileClass:
        differences = [result.difference for result in compared if result.difference]
        changes = [change for d in differences for change in d.changes if change.file_class is kind]
        files, size = sum(d.files[kind] for d in differences), sum(d.sizes[kind] for d in differences)
        count = sum(change.bytes_changed for change in changes)
        yield f"{kind:<11}{files:>7}{len(changes):>9}{size:>14,}{count:>15,}"


def _failures(results: list[Result]) -> list[str]:
    lines = []
    for result in results:
        for side, failure in (("base", result.base_failure), ("head", result.head_failure)):
            if failure:
                lines += [f"{result.cell.name}: no package of the {side}", *("  " + line for line in failure.splitlines())]
    return [*lines, ""] if lines else []


def _files(compared: list[Result]) -> list[str]:
    """Files that changed: graphs, weights, what came, went or was renamed one by one, the rest counted by name."""
    lines, counted = [], defaultdict(list)
    for result in compared:
        for change in result.difference.changes if result.difference else ():
            if change.file_class in HELD or change.note:
                what = change.note or f"{change.bytes_changed:,} bytes"
                lines.append(f"  {result.cell.name}: {change.path}  {what}")
            else:
                counted[_short(change.path)].append(change.bytes_changed)
    lines += [f"  {name}: in {len(counts)} packages, {sum(counts):,} bytes" for name, counts in sorted(counted.items())]
    return ["files that changed", *lines, ""] if lines else []


def _keys(compared: list[Result]) -> list[str]:
    """Keys that changed, those of one kind under one line."""
    groups: dict[tuple[str, str, str], list[tuple[Cell, KeyChange]]] = defaultdict(list)
    for result in compared:
        for change in result.difference.changes if result.difference else ():
            for key in change.keys:
                groups[_short(change.path), _pattern(key.key), key.kind].append((result.cell, key))
    lines = []
    for (file, pattern, kind), places in sorted(groups.items()):
        packages = len({cell for cell, _ in places})
        cell, first = places[0]
        values = " -> ".join(_value(value) for value in (first.old, first.new) if value is not None)
        lines.append(f"  {file}: {pattern} {kind}, {len(places)} in {packages} packages; {cell.name}: {values}")
    return ["JSON keys that changed", *lines, ""] if lines else []


def _pattern(key: tuple[str, ...]) -> str:
    """A key with its middle left out, so that the same key of a hundred layers is one line."""
    return ".".join(key) if len(key) < 3 else f"{key[0]}.*.{key[-1]}"


def _short(path: str) -> str:
    """A path without the folders that carry a model's name."""
    return PurePosixPath(path).name


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
