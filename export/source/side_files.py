"""Which files of a checkpoint travel beside its weights, and why: the one list for downloads and for packages.

A file is judged by its name alone. A link is followed only where `export.source.links` lets it be: what is copied may be
published. Weights have a list of their own (`export.source.checkpoint.WEIGHT_FILES`); published
code is in none.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

from export.source.links import require_allowed
from runtime_py.errors import CheckpointError
from runtime_py.files.json_file import MEGABYTE, shortened


class Purpose(StrEnum):
    """Why a file travels."""

    LICENCE = "licence"
    """The terms under which the weights were given and may be passed on."""
    CARD = "model card"
    """Where the model comes from, and its licence where no file of its own says so."""
    CONFIG = "config"
    """What the model is: a package holds the config that it was made from."""
    GENERATION = "generation"
    """How answers are drawn unless the caller says otherwise."""
    PICTURES = "pictures"
    """How pictures are prepared."""
    VOCABULARY = "vocabulary"
    """Text to tokens and back: one of these is needed to chat."""
    TOKENS = "tokens"
    """What a vocabulary leaves out: merges, special and added tokens, the prompt's template."""
    READING = "reading"
    """Needed to read the checkpoint (shard indices, a family's own settings, a template that a package says in its own
    words), not to run what is made from it."""


RULES: tuple[tuple[str, Purpose], ...] = (
    ("*license*", Purpose.LICENCE),
    ("*licence*", Purpose.LICENCE),
    ("*notice*", Purpose.LICENCE),
    ("*use?policy*", Purpose.LICENCE),
    ("copying*", Purpose.LICENCE),
    ("*readme.md", Purpose.CARD),
    ("config.json", Purpose.CONFIG),
    ("generation_config.json", Purpose.GENERATION),
    ("preprocessor_config.json", Purpose.PICTURES),
    ("video_preprocessor_config.json", Purpose.PICTURES),
    ("processor_config.json", Purpose.PICTURES),
    ("tokenizer.json", Purpose.VOCABULARY),
    ("tokenizer.model", Purpose.VOCABULARY),
    ("vocab.json", Purpose.VOCABULARY),
    ("*.tiktoken", Purpose.VOCABULARY),
    ("vocab.txt", Purpose.TOKENS),
    ("merges.txt", Purpose.TOKENS),
    ("tokenizer_config.json", Purpose.TOKENS),
    ("special_tokens_map.json", Purpose.TOKENS),
    ("added_tokens.json", Purpose.TOKENS),
    ("chat_template.json", Purpose.READING),
    ("chat_template.jinja", Purpose.READING),
    ("*.json", Purpose.READING),
)
"""Patterns of names in lower case; the first that fits says what a file is for."""

CODE = (".py", ".ipynb", ".sh", ".js", ".cpp", ".cu", ".so")
"""Never a side file, whatever its name says."""

ALLOWED = [
    "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in pattern) for pattern, _ in RULES
]
IGNORED = ["*/*", *(f"*{ending}" for ending in CODE)]
"""The same list for the hub's client, which minds the case; side files lie at the top of a repository."""

MAX_BYTES = 256 * MEGABYTE
"""Of one side file; the largest vocabularies published have some 40 MB."""

MAX_NAME, FORBIDDEN = 200, "\\:/"
"""What a path of a package may not be (``path`` in runtime_py/files/schemas/manifest.schema.json)."""

CARD_NAME, CARD_ORIGIN = "README.md", "checkpoint"
"""The hub's model card has this name in every repository: a package keeps the checkpoint's card under another one."""

KEPT_TWICE = (Purpose.LICENCE, Purpose.CARD)
"""Of two files with one name both are kept: the parts of a checkpoint each have their terms."""


@dataclass(frozen=True)
class SideFile:
    """A file that a package keeps.

    Attributes:
        path: where it lies, relative to the checkpoint's folder.
        name: what it is called in the package, which has no folders for such files.
    """

    path: Path
    name: str
    purpose: Purpose


def purpose_of(name: str) -> Purpose | None:
    """What a file of a checkpoint is for; None for weights, code, and what nobody needs."""
    plain = name.lower()
    if plain.endswith(CODE):
        return None
    return next((purpose for pattern, purpose in RULES if fnmatchcase(plain, pattern)), None)


def side_files(checkpoint: Path, places: Iterable[Path], licence_places: Iterable[Path] = ()) -> tuple[SideFile, ...]:
    """The files of a checkpoint that a package keeps, by name.

    Args:
        checkpoint: its folder.
        places: folders that may hold any of them; of two files with one name the first folder's is kept.
        licence_places: further folders, of which the licences and model cards are kept.
    """
    files: dict[str, SideFile] = {}
    for place, kept in [*((place, tuple(Purpose)) for place in places), *((place, KEPT_TWICE) for place in licence_places)]:
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            purpose = purpose_of(path.name)
            if purpose is None or purpose not in kept or purpose is Purpose.READING or path.is_dir():
                continue
            _refuse_strange(path, checkpoint)
            name = apart(path.name, CARD_ORIGIN) if path.name == CARD_NAME else path.name
            if name in files and purpose in KEPT_TWICE and not _same(checkpoint / files[name].path, path):
                name = apart(path.name, place.name)
            files.setdefault(name, SideFile(path.relative_to(checkpoint), name, purpose))
    return tuple(files[name] for name in sorted(files))


def _refuse_strange(path: Path, checkpoint: Path) -> None:
    """Refuse what must not be copied: no file, one from elsewhere, a huge one, or a name that a package cannot hold."""
    require_allowed(path, checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path} is no file", "a regular file", "restore it, or move away what has its name")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes", f"at most {MAX_BYTES:,} beside the weights", "move it away")
    if len(path.name) > MAX_NAME or any(letter in FORBIDDEN or not letter.isprintable() for letter in path.name):
        raise CheckpointError(
            f"the file name {shortened(path.name)}",
            f"at most {MAX_NAME} printable characters, none of {FORBIDDEN}",
            "rename the file, or move it away",
        )


def apart(name: str, origin: str) -> str:
    """Another name for the second of two files called ``name``; it still says what the file is for."""
    return f"{origin}.{name}"


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve() or filecmp.cmp(first, second, shallow=False)


def named(files: Sequence[SideFile], *purposes: Purpose) -> list[SideFile]:
    """Those of ``files`` that serve one of the purposes."""
    return [file for file in files if file.purpose in purposes]


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer in a published form."""
    return any(purpose_of(path.name) is Purpose.VOCABULARY for path in folder.iterdir() if path.is_file())


def require_vocabulary(checkpoint: Path, files: Sequence[SideFile]) -> None:
    """Raise CheckpointError unless a tokenizer in a published form is among a checkpoint's files."""
    if not named(files, Purpose.VOCABULARY):
        raise CheckpointError(
            f"{checkpoint} holds no tokenizer",
            "one of " + ", ".join(pattern for pattern, purpose in RULES if purpose is Purpose.VOCABULARY),
            "download the tokenizer files too, or accept a package that cannot chat with --without-tokenizer",
        )
