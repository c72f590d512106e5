"""Which profile of an engine serves a call, and how a call that is too large for all of them is cut into several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_py.backends.records import TENSORRT
from runtime_py.contracts import StageContract
from runtime_py.errors import PackageError, UsageError
from runtime_py.package.files import listed_file

Shape = tuple[int, ...]
PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: input name to least and greatest shape."""

    name: str
    least: Mapping[str, Shape]
    greatest: Mapping[str, Shape]

    def covers(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether every given shape lies within this profile; inputs it does not name are not its business."""
        return all(self._within(name, shape) for name, shape in shapes.items() if name in self.least)

    def _within(self, name: str, shape: Shape) -> bool:
        least, greatest = self.least[name], self.greatest[name]
        if len(shape) != len(least):
            return False
        return all(low <= size <= high for low, size, high in zip(least, shape, greatest, strict=True))


@dataclass(frozen=True)
class EnginePlan:
    """A stage's engine as the manifest describes it; profiles in the engine's order."""

    stage: str
    file: Path
    contract: StageContract
    profiles: tuple[Profile, ...]

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """Index of the first profile that covers a call.

        Raises:
            UsageError: none does.
        """
        for index, profile in enumerate(self.profiles):
            if profile.covers(shapes):
                return index
        plain = [name for name in shapes if not name.startswith(PAST)]
        asked = ", ".join(f"{name} {list(shapes[name])}" for name in plain)
        ranges = [(p.name, [f"{n} up to {list(p.greatest[n])}" for n in plain if n in p.greatest]) for p in self.profiles]
        built = "; ".join(f"{name}: {', '.join(sizes)}" for name, sizes in ranges)
        raise UsageError(
            f"the {self.stage} engine was not built for {asked}",
            built,
            "use a smaller or less elongated picture, a shorter prompt, or export with larger limits",
        )

    @property
    def caches(self) -> dict[str, Shape]:
        """Of a decoder: by cache input the shape of one sequence's part, (heads, capacity, width)."""
        greatest = self.profiles[0].greatest
        return {name: shape[1:] for name, shape in greatest.items() if name.startswith(PAST)}

    def axis(self, tensor: str, name: str) -> int | None:
        """Position of the axis called ``name`` in an input, or None."""
        for entry in self.contract.inputs:
            if entry.name == tensor and name in entry.shape:
                return entry.shape.index(name)
        return None

    def largest(self, name: str) -> int:
        """The greatest size of the axis called ``name`` in any profile."""
        sizes = [
            profile.greatest[entry.name][entry.shape.index(name)]
            for entry in self.contract.inputs
            if name in entry.shape
            for profile in self.profiles
            if entry.name in profile.greatest
        ]
        return max(sizes, default=1)

    def cut(self, inputs: Mapping[str, np.ndarray], name: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Pieces of a call along the axis called ``name``, each small enough: where a piece starts, and its inputs."""
        places = {tensor: self.axis(tensor, name) for tensor in inputs}
        size = next((inputs[tensor].shape[axis] for tensor, axis in places.items() if axis is not None), 1)
        step = self.largest(name)
        for start in range(0, size, step):
            piece = slice(start, min(start + step, size))
            yield (
                start,
                {
                    tensor: array if places[tensor] is None else array[(slice(None),) * places[tensor] + (piece,)]  # type: ignore[operator]
                    for tensor, array in inputs.items()
                },
            )


def read_plans(folder: Path, manifest: Mapping[str, Any]) -> dict[str, EnginePlan]:
    """The engines a package holds, by stage.

    Raises:
        PackageError: the package has no TensorRT engines, or their files are missing.
    """
    block = TENSORRT.block(manifest)
    if not block:
        raise PackageError(
            f"{folder} holds no TensorRT engines", "backends.tensorrt in manifest.json", "export it for desktop-gpu"
        )
    plans = {}
    for stage, entry in block["stages"].items():
        path = listed_file(folder, manifest, entry["file"])
        contract = StageContract.from_json(manifest["contracts"][stage])
        plans[stage] = EnginePlan(stage, path, contract, tuple(_profile(row) for row in entry["profiles"]))
    return plans


def _profile(row: Mapping[str, Any]) -> Profile:
    def shapes(index: int) -> dict[str, Shape]:
        return {name: tuple(triple[index]) for name, triple in row["shapes"].items()}

    return Profile(row["name"], shapes(0), shapes(2))


def split_positions(positions: Sequence[int], tokens: int) -> list[int]:
    """Logit positions counted from the front; negative ones count from the end.

    Raises:
        UsageError: a position is outside the tokens.
    """
    resolved = [int(p) + tokens if p < 0 else int(p) for p in positions]
    if any(not 0 <= p < tokens for p in resolved):
        raise UsageError(f"logit positions {list(positions)}", f"indices into {tokens} tokens", "correct the positions")
    return resolved
