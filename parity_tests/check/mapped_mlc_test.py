"""A library run from weights that stay in their files says exactly what it says from weights in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parity_tests.check.candidate import open_candidate
from parity_tests.check.mapped_mlc import MappedMlcBackend
from parity_tests.check.package_questions import questions
from parity_tests.judging.probes import Recording, record
from runtime_py.contracts import EMBED
from runtime_py.errors import PackageError

STEPS = 3
IDS = np.arange(5, 37)[None]


def said(package: Path, in_pieces: bool) -> Recording:
    candidate = open_candidate(package, in_pieces=in_pieces)
    assert isinstance(candidate.backend, MappedMlcBackend) == in_pieces
    asked = questions(candidate.processor, 1, candidate.limits.context, STEPS)[0]
    return record(candidate.backend, candidate.processor, candidate.limits, asked, STEPS)


@pytest.mark.parametrize("precision", ["int4", "q4f32_1"])
def test_mapped_weights_say_the_same(exported: Callable[..., Path], precision: str) -> None:
    package = exported("minicpm-v", "android", precision)
    actual, expected = said(package, in_pieces=True).flattened(), said(package, in_pieces=False).flattened()
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def resident(folder: Path) -> dict[str, int]:
    """Mapped file to its resident kB in this process."""
    sizes: dict[str, int] = {}
    path = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
        elif line.startswith("Rss:") and path.startswith(str(folder)) and path.endswith(".bin"):
            sizes[path] = sizes.get(path, 0) + int(line.split()[1])
    return sizes


def test_pages_are_given_back(exported: Callable[..., Path]) -> None:
    folder = exported("minicpm-v", "android", "int4")
    backend = open_candidate(folder, in_pieces=True).backend
    assert isinstance(backend, MappedMlcBackend)
    for shard in backend._shards.values():
        assert len(shard[:]) == len(shard)
    assert sum(resident(folder).values()) >= sum(len(shard) for shard in backend._shards.values()) // 1024
    backend.run(EMBED, {"input_ids": IDS})
    assert sum(resident(folder).values()) == 0


def test_truncated_shard_is_refused(copied: Callable[..., Path]) -> None:
    package = copied("minicpm-v", "android", "int4")
    shard = max(package.glob("mlc/*/params_shard_*.bin"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-4096])
    with pytest.raises(PackageError, match=r"is no sound index of weights(.|\n)*ends at byte"):
        open_candidate(package, in_pieces=True)
