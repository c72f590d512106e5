"""From what the user typed (alias, hub id, folder, ``demo``) to a checkpoint folder, downloading it when it must be.

Downloads go through huggingface_hub, which honours HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT. Published Python
is never fetched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from export.checkpoint.recognised import RecognisedCheckpoint, recognise_checkpoint
from export.families.base import Family
from export.families.names import did_you_mean_model, find, is_a_file, meant, nearest
from export.source.checkpoint import WEIGHT_FILES, in_other_forms
from export.source.links import JOINED
from export.source.shard_index import read_index, stays_inside
from export.source.side_files import ALLOWED, IGNORED, KEPT_TWICE, apart, purpose_of
from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.hub.client import REACH_SECONDS, as_quiet_as_asked, licence_not_accepted, network_errors, reason
from runtime_py.hub.room import bytes_to_fetch, explained_when_full, require_room

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        id: hub id, ``demo/<family>``, or the folder's name; never a path of this machine.
        revision: commit of a hub checkpoint, else None.
        recognised: what the check before the weights were fetched found; None for a folder that was here.
    """

    folder: Path
    id: str
    revision: str | None
    recognised: RecognisedCheckpoint | None = None


def resolve(model: str, weights: str | None = None, revision: str | None = None) -> Checkpoint:
    """The checkpoint meant by ``--model``, ``--weights`` and ``--revision``.

    See `export.families.names.meant` for what ``model`` may be.

    Raises:
        UsageError: a name that stands for nothing, or a folder that does not exist.
        UnsupportedModelError: the repository is no checkpoint that a family builds; found before its weights are fetched.
        MachineError: the hub cannot be reached.
    """
    stands_for = meant(model)
    if weights == DEMO:
        if stands_for.published is None:
            raise UsageError(
                f"--model {model} has no demo checkpoint",
                "one of: " + ", ".join(demos()),
                "name one of these, or leave --weights demo out",
            )
        folder = DEMO_FOLDER / stands_for.published.family.name
        if not folder.is_dir():
            made = ", ".join(demos())
            raise UsageError(f"{folder.name} has no demo checkpoint", f"one of: {made}", "use --weights <folder>")
        return Checkpoint(folder, f"demo/{folder.name}", None)
    if weights is not None or stands_for.folder is not None:
        return _local(Path(weights or model), revision)
    assert stands_for.hub_id is not None
    return _downloaded(stands_for.hub_id, revision)


def demos() -> list[str]:
    """Families whose demo checkpoint comes along."""
    return sorted(path.name for path in DEMO_FOLDER.glob("*/"))


def _local(folder: Path, revision: str | None) -> Checkpoint:
    if folder.is_file():
        raise is_a_file("--weights", folder)
    if not folder.is_dir():
        raise UsageError(
            f"--weights {folder}: there is no such folder", "a checkpoint folder, or the word demo", "check the path"
        )
    real = folder.resolve()
    cache = real.parent.parent.name
    if real.parent.name == "snapshots" and cache.startswith("models--"):
        return Checkpoint(folder, cache.removeprefix("models--").replace("--", "/"), real.name)
    if revision is not None:
        raise UsageError(f"{folder} is a folder, which has no revision", "--revision with a hub id only", "leave it out")
    return Checkpoint(folder, real.name, None)


def _downloaded(repo_id: str, revision: str | None) -> Checkpoint:
    known = find(repo_id)
    if known is not None and known.family.hub_parts:
        return _joined(known.family, repo_id, revision)
    recognised: list[RecognisedCheckpoint] = []
    folder = fetch(repo_id, revision, check=lambda folder: recognised.append(recognise_checkpoint(folder)))
    return Checkpoint(folder, repo_id, folder.name, recognised[0])


def _joined(family: Family, repo_id: str, revision: str | None) -> Checkpoint:
    """A checkpoint published in several repositories, each in the hub's cache, as one folder of links to them."""
    from huggingface_hub.constants import HF_HUB_CACHE

    parts = family.hub_parts
    folders = [fetch(part.repo_id, revision if part.repo_id == repo_id else None, weights=part.weights) for part in parts]
    own = next(folder.name for part, folder in zip(parts, folders, strict=True) if part.repo_id == repo_id)
    commits = "\n".join(f"{part.repo_id}@{folder.name}" for part, folder in zip(parts, folders, strict=True))
    name = hashlib.sha256(commits.encode()).hexdigest()[:16]
    place = Path(HF_HUB_CACHE) / JOINED / repo_id.replace("/", "--") / name
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{name}."))
    try:
        for part, folder in zip(parts, folders, strict=True):
            target = partial / part.place
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                _link(file, target, part.repo_id)
        settings = family.config_files(family.published_config(repo_id, "full"))["config.json"]
        if not (partial / "config.json").exists():
            (partial / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        recognised = recognise_checkpoint(partial)
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Checkpoint(place, repo_id, own, replace(recognised, folder=place))


def _link(file: Path, folder: Path, repo_id: str) -> None:
    """Put a link to ``file`` into ``folder``; of two files with one name the first repository's stays, licences both."""
    placed = folder / file.name
    if placed.exists() and purpose_of(file.name) in KEPT_TWICE:
        placed = folder / apart(file.name, repo_id.rpartition("/")[2])
    if not placed.exists():
        placed.symlink_to(file.absolute())


def fetch(
    repo_id: str,
    revision: str | None = None,
    check: Callable[[Path], object] | None = None,
    weights: bool = True,
) -> Path:
    """The folder of a hub repository's configs, tokenizer, licence and weights, in the hub's cache.

    Safetensors are preferred to pickles where both are published (the order of `WEIGHT_FILES`). What the cache holds
    is used when the hub cannot be reached.

    Args:
        check: called with the folder before any weights are fetched; what it raises ends the download.
        weights: False for the other files alone.

    Raises:
        MachineError: the hub cannot be reached and the cache does not hold the checkpoint.
        UsageError: no such repository or revision, or one that wants a licence accepted first.
        DoesNotFitError: the disk of the hub's cache has no room for the weights; found before they are fetched.
    """
    try:
        import huggingface_hub  # noqa: F401  # is it there?
    except ImportError as error:
        raise _unreachable(repo_id, "huggingface_hub is not installed (pip install 'edgeproof[export]')") from error
    with as_quiet_as_asked():
        return _fetched(repo_id, revision, check, weights)


def _fetched(repo_id: str, revision: str | None, check: Callable[[Path], object] | None, weights: bool) -> Path:
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=REACH_SECONDS)
        files = {file.rfilename: file for file in info.siblings or []}
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=ALLOWED, ignore_patterns=IGNORED))
        if check is not None:
            check(folder)
        if not weights:
            return folder
        wanted = _weights(repo_id, list(files), folder)
        require_room(repo_id, bytes_to_fetch(repo_id, [files[name] for name in wanted if name in files]))
        return Path(snapshot_download(repo_id, revision=folder.name, allow_patterns=wanted))
    except EdgeproofError:
        raise
    except errors.GatedRepoError as error:
        raise licence_not_accepted(repo_id) from error
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"the hub has no {repo_id} at revision {revision or 'main'}, or this token may not see it",
            "a public repository, or HF_TOKEN set to a token that may read it",
            f"{did_you_mean_model(repo_id)}; check --revision too, or use --weights <folder>",
        ) from error
    except network_errors() as error:
        full = explained_when_full(error, repo_id)
        if full is not None:
            raise full from None  # a cause with ENOSPC would be told as one of the package's disk
        return _cached(repo_id, revision, reason(error), check, weights)


def _cached(repo_id: str, revision: str | None, reason: str, check: Callable[[Path], object] | None, weights: bool) -> Path:
    """The checkpoint from the cache alone."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=ALLOWED, ignore_patterns=IGNORED, local_files_only=True
            )
        )
    except (OSError, ValueError) as error:
        raise _unreachable(repo_id, reason) from error
    names = [path.name for path in folder.iterdir()]
    if check is not None:
        check(folder)
    if not weights:
        return folder
    try:
        complete = all((folder / name).is_file() for name in _weights(repo_id, names, folder))
    except UsageError:
        complete = False
    if not complete:
        raise _unreachable(repo_id, f"{reason}, and the cache holds no whole copy of its weights")
    return folder


def _unreachable(repo_id: str, reason: str) -> EdgeproofError:
    """A fault of the machine; of the name where it is none that is known here and looks like one that is."""
    if find(repo_id) is None and nearest(repo_id):
        return UsageError(
            f"--model {repo_id} is no checkpoint that is known here, and the hub cannot be asked: {reason}",
            "a name that `edgeproof models` lists, or the hub within reach",
            did_you_mean_model(repo_id),
        )
    return MachineError(
        f"cannot download {repo_id}: {reason}",
        "the model hub within reach, or the checkpoint in its cache",
        "use a checkpoint you have with --weights <folder>, or the one that comes along with --weights demo",
    )


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)]


def _weights(repo_id: str, names: Sequence[str], folder: Path) -> list[str]:
    """The weight files to fetch; shards are those that the index, already fetched into ``folder``, names."""
    for pattern in WEIGHT_FILES:
        matching = _matching(names, (pattern,))
        if matching and pattern.endswith(".index.json"):
            index = folder / matching[0]
            shards = list(dict.fromkeys(read_index(index).values()))
            return [shard for shard in shards if stays_inside(index, shard)]
        if matching:
            return matching
    told = f"{repo_id} holds no weights{in_other_forms(names)}"
    raise UsageError(told, "one of: " + ", ".join(WEIGHT_FILES), "choose another repository")
