"""What people call the published checkpoints, and what a name that nothing is called may have meant.

A checkpoint is found by its hub id, by the last part of it, by its family's name or alias with or without the version, and
by any of these after the name of the organisation; letter case and separators do not matter, nor does ``.0``:
``minicpm-v-2``, ``MiniCPM_V 2.0`` and ``openbmb/minicpm-v2`` are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from export.families import registry
from export.families.base import Family
from export.families.published import quantised, variants
from export.source.weight_endings import converted, what_to_name
from runtime_py.errors import UnsupportedModelError, UsageError, did_you_mean
from runtime_py.errors import nearest as similar

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ADDRESS = re.compile(r"https?://[^/]+/([^/?#]+/[^/?#]+)")

_VERSION = re.compile(r"v?\d+([._]\d+)*(?![\d._]*b)")
"""A number that is no size, as 7b is."""

LIKE = 0.75
"""How much alike two names are, of 1, where one may be a mistyped form of the other."""


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Attributes:
        variant: its version, as ``synthesize --variant`` and published.toml call it.
        quantised: the library that quantised its weights before they were published; "" where none did.
    """

    family: Family
    hub_id: str
    variant: str
    quantised: str = ""

    @property
    def organisation(self) -> str:
        return self.hub_id.partition("/")[0]


@dataclass(frozen=True)
class Meant:
    """What a ``--model`` stands for: a published checkpoint, a folder, or another repository of the hub.

    Attributes:
        hub_id: of the published checkpoint or of the other repository; None for a folder.
    """

    published: Published | None = None
    folder: Path | None = None
    hub_id: str | None = None


def published() -> tuple[Published, ...]:
    """Every published checkpoint of every family; the first of a family is what its name stands for."""
    return _published_by(tuple(registry.families().values()))


@cache
def _published_by(families: tuple[Family, ...]) -> tuple[Published, ...]:
    rows = []
    for family in families:
        table = family.published_table()
        of_id, by = (variants(table), quantised(table)) if table.is_file() else ({}, {})
        rows += [Published(family, hub_id, of_id.get(hub_id, ""), by.get(hub_id, "")) for hub_id in family.hub_ids]
    return tuple(rows)


def find(name: str) -> Published | None:
    """The published checkpoint with this name, or None."""
    organisation, slash, rest = name.rpartition("/")
    for one in _by_key(published()).get(_key(rest), ()):
        if not slash or organisation.lower() == one.organisation.lower():
            return one
    return None


def meant(model: str) -> Meant:
    """What ``--model`` stands for; no network is asked.

    Names and aliases as a family declares them go before folders of the same name, all other names after them; ``./name``
    is always a folder.

    Raises:
        UsageError: a name that stands for nothing, or a folder that is not there; it tells the nearest names.
        UnsupportedModelError: a version of a family that is not built; it tells those that are.
    """
    exact = _declared(published()).get(model.lower())
    if exact is not None:
        return Meant(published=exact, hub_id=exact.hub_id)
    if Path(model).is_dir():
        return Meant(folder=Path(model))
    address = _ADDRESS.match(model)
    if address is not None:
        raise UsageError(f"--model {model} is an address", "a hub id", f"name it as --model {address[1]}")
    if _is_path(model):
        raise _no_folder(model)
    known = find(model)
    if known is not None:
        return Meant(published=known, hub_id=known.hub_id)
    if HUB_ID.fullmatch(model):
        return Meant(hub_id=model)
    versions = _versions_of(model)
    if versions:
        raise UnsupportedModelError(
            f"--model {model} is a version of {versions[0].family.name} that is not built",
            f"one of {', '.join(one.hub_id for one in versions)}; or the id or folder of what was trained from one",
            did_you_mean_model(model),
        )
    raise UsageError(
        f"--model {model} is no family, hub id or folder",
        f"a family: {', '.join(registry.families())}; an id such as org/name; or a folder",
        did_you_mean_model(model),
    )


def nearest(name: str, count: int = 3) -> list[str]:
    """Names of published checkpoints that a mistyped one may have meant, likeliest first; with the organisation when
    ``name`` has one, which may be mistyped too.
    """
    organisation, slash, rest = name.rpartition("/")
    shown: dict[str, str] = {}
    if slash:
        for one in published():
            shown[f"{one.organisation.lower()}/{_key(one.hub_id.rpartition('/')[2])}"] = one.hub_id
        return [shown[key] for key in similar(f"{organisation.lower()}/{_key(rest)}", shown, count, LIKE)]
    for text, _ in _names(published()):
        shown.setdefault(_key(text), text)
    return [shown[key] for key in similar(_key(rest), shown, count, LIKE)]


def did_you_mean_model(name: str) -> str:
    """The ``next`` part of an error about a ``--model``."""
    near = nearest(name) or nearest(name.rpartition("/")[2])
    listed = "`edgeproof models` lists every model that is built; other versions of it are not"
    return f"did you mean {' or '.join(near)}? {listed}" if near else listed


@cache
def _declared(known: tuple[Published, ...]) -> dict[str, Published]:
    declared: dict[str, Published] = {}
    for one in known:
        declared.setdefault(one.hub_id.lower(), one)
        for name in (one.family.name, *one.family.aliases):
            declared.setdefault(name.lower(), one)
    return declared


def _names(known: tuple[Published, ...]) -> Iterator[tuple[str, Published]]:
    """Every name without an organisation, the plainest first."""
    firsts = {one.family.name: one for one in reversed(known)}
    for first in reversed(firsts.values()):
        yield from ((name, first) for name in (first.family.name, *first.family.aliases))
    yield from ((one.hub_id.partition("/")[2], one) for one in known)
    for one in known:
        versions = dict.fromkeys((one.variant, one.variant.removesuffix(".0")))
        yield from (
            (f"{name}-{version}", one) for name in (one.family.name, *one.family.aliases) for version in versions if version
        )


@cache
def _by_key(known: tuple[Published, ...]) -> dict[str, list[Published]]:
    by_key: dict[str, list[Published]] = {}
    for name, one in _names(known):
        by_key.setdefault(_key(name), []).append(one)
    return by_key


def _versions_of(model: str) -> list[Published]:
    """Every checkpoint of the families that a name with a version, but for it, is a name of; the nearest family first."""
    plain = _key(_VERSION.sub("", model.lower()))
    if not _VERSION.search(model.lower()):
        return []
    known = {one.family.name for name, one in _names(published()) if _key(_VERSION.sub("", name.lower())) == plain}
    return sorted((one for one in published() if one.family.name in known), key=lambda one: len(one.family.name))


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _is_path(model: str) -> bool:
    """Whether a name that is no folder was meant to be one: by its form, or because its first part is a folder here."""
    parts = Path(model).parts
    formed = model.startswith((".", "/", "~", "\\")) or model.endswith(("/", "\\")) or len(parts) > 2 or ":" in model
    return formed or Path(model).is_file() or (len(parts) == 2 and Path(parts[0]).is_dir())


def is_a_file(flag: str, path: Path) -> UsageError:
    """A file where a checkpoint's folder was wanted; no single file holds a checkpoint."""
    expected = "the folder of a checkpoint: config.json, weights as safetensors or pickles, the tokenizer's files"
    advice = f"name the folder, {path.parent}, if it is one"
    if converted([path.name]):
        advice = what_to_name([path.name])
    return UsageError(f"{flag} {path} is a file", expected, advice)


def _no_folder(model: str) -> UsageError:
    folder = Path(model)
    if folder.is_file():
        return is_a_file("--model", folder)
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    next_step = did_you_mean(folder.name, beside, "check the path; `edgeproof models` lists the names that need no folder")
    return UsageError(f"--model {model}: there is no such folder", "a checkpoint folder", next_step)
