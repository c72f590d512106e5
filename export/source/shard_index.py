"""``*.index.json``: which shard holds which tensor, checked against the shards and kept inside the checkpoint's folder.

Source of the layout: huggingface/transformers, ``save_pretrained``; of the cache layout: huggingface/huggingface_hub,
docs/source/en/guides/manage-cache.md (``snapshots/<revision>/<file>`` links to ``blobs/<hash>``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from export.source.links import may_be_read
from export.source.located_source import require_plain_name
from export.source.problems import listed
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, read_json, shortened

MAX_INDEX_BYTES = 16 * MEGABYTE
"""Some 150,000 tensors."""

MAX_SHARDS = 10_000
MAX_NAME = 500
"""Characters of a shard's name that an error shows."""


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard name, in the order written.

    Raises:
        CheckpointError: the file is no index, or names a shard outside its folder.
    """
    value = read_json(path, MAX_INDEX_BYTES, CheckpointError, "download the file again")
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _no_index(path, "no weight_map")
    for name in weight_map:
        require_plain_name(name, path)
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _no_index(path, "a shard that is no file name")
    return weight_map


def _no_index(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is no weight index",
        f'a JSON object {{"weight_map": {{tensor: file}}}}; found {found}',
        "download the file again",
    )


def shard_paths(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    """The shards in order of first mention, each inside the index's folder and present.

    Raises:
        CheckpointError: a shard is named by an absolute or escaping path, is a link to elsewhere, or is missing.
    """
    folder = index.parent
    counts = Counter(weight_map.values())
    if len(counts) > MAX_SHARDS:
        raise _no_index(index, f"{len(counts):,} files, more than {MAX_SHARDS:,}")
    paths = []
    for name, tensors in counts.items():
        path = folder / name
        if not stays_inside(index, name):
            raise CheckpointError(
                f"{index} names a file outside its folder: {shortened(name)}",
                f"shards inside {folder}",
                "do not use this checkpoint unless you know why; put its shards beside the index",
            )
        if not os.path.isfile(path):  # noqa: PTH113  (pathlib's raises for a name that is too long)
            raise CheckpointError(
                f"{folder / name[:MAX_NAME]} is missing",
                f"a shard with {tensors} tensor(s), named in {index.name}",
                "download the missing file",
            )
        paths.append(path)
    return list(dict.fromkeys(paths))  # "./a" is "a"


def _is_plain(name: str) -> bool:
    """A relative path without ``..``, by the rules of POSIX and of Windows, of characters that are printed."""
    if not name or not name.isprintable():
        return False
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return not any(kind.is_absolute() or kind.drive or kind.root or ".." in kind.parts for kind in kinds)


def stays_inside(index: Path, name: str) -> bool:
    """Whether a shard's name is a plain one and leads, links followed, to where a file of a checkpoint may lie."""
    return _is_plain(name) and may_be_read(index.parent / name, index.parent)


def check_shards(index: Path, weight_map: Mapping[str, str], tensors: Iterable[tuple[str, Path]]) -> None:
    """Compare the index with the tensors that the shards hold (name, file).

    Raises:
        CheckpointError: listing every tensor that is named and absent, or present and not named.
    """
    stored = {(name, path) for name, path in tensors}
    named = {(name, index.parent / shard) for name, shard in weight_map.items()}
    problems = [f"named in the index, absent from {path.name}: {name}" for name, path in sorted(named - stored)]
    problems += [f"in {path.name}, not named there by the index: {name}" for name, path in sorted(stored - named)]
    if problems:
        raise CheckpointError(
            f"{index} and its shards disagree: {len(problems)} problem(s)" + listed(problems),
            "every tensor in exactly the shard that the index names",
            "download index and shards again, of one revision",
        )
