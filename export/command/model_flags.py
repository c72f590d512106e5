"""The flags that say what is exported, for what and how: one list for every program that takes them.

A flag fills the field of its name in `export.request.ExportRequest` (``--block-size`` is ``block_size``), and in every
other request that has such a field.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from runtime_py.command.flags import Group
from runtime_py.command.parser import Parser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyRequest = TypeVar("AnyRequest", bound=DataclassInstance)
else:
    AnyRequest = TypeVar("AnyRequest")


@dataclass(frozen=True)
class ModelFlag:
    """One flag.

    Attributes:
        value: what --help calls its value; "" for a flag that is given or not.
        kind: makes the value from its text.
        short: a second spelling.
    """

    flag: str
    value: str
    meaning: str
    kind: Callable[[str], Any] = str
    required: bool = False
    short: str = ""

    @property
    def field(self) -> str:
        """Of the request."""
        return self.flag.removeprefix("--").replace("-", "_")


MODEL = (
    ModelFlag("--model", "MODEL", "family alias, hub id or checkpoint folder (edgeproof models)", required=True),
    ModelFlag("--weights", "demo|DIR", "the demo checkpoint, or a folder with the model's weights"),
    ModelFlag("--revision", "REV", "branch, tag or commit on the hub"),
)
TARGET = (
    ModelFlag("--target", "TARGET", "cpu, desktop-gpu, server-cpu, server-gpu, android, ios (see targets)", required=True),
    ModelFlag("--precision", "P", "int4, fp16, fp32 or a name of the target; default: the target's first"),
)
LIMITS = (
    ModelFlag("--context", "N", "positions in the cache, prompt and answer together", int),
    ModelFlag("--prefill-chunk", "N", "tokens fed to the decoder in one call at most", int),
    ModelFlag("--batch", "N", "sequences in one decoder call, 1 to 16; default 1, server-gpu 8 (GPUs and phones)", int),
)
CALIBRATION = (ModelFlag("--calibration", "DIR", "folder of edgeproof calibrate, whose int4 codes are used", Path),)
CHOICE = (ModelFlag("--choice", "FILE", "layers that get more bits: what calibrate vision or search wrote", Path),)
DEVICE = (ModelFlag("--device", "NAME", "refuse what does not fit this device (edgeproof targets)"),)
OUTPUT = (ModelFlag("--output", "DIR", "package folder; default <model>-<target>-<precision>", Path, short="-o"),)
AGAIN = (
    ModelFlag("--resume", "", "go on with what was cut off"),
    ModelFlag("--force", "", "replace what has this name, finished or not"),
)
WAIVERS = (
    ModelFlag("--skip-verify", "", "leave the check at the end out; recorded as a waiver"),
    ModelFlag("--without-tokenizer", "", "accept a checkpoint without one, whose package cannot chat; a waiver"),
)

OPTION = "option "
"""Begins the destination of a flag whose option has no field of its own."""


def add(made: Group, flags: tuple[ModelFlag, ...]) -> None:
    """Give a parser, or a group of one, some of the flags."""
    for flag in flags:
        names = [flag.short, flag.flag] if flag.short else [flag.flag]
        if flag.value:
            made.add_argument(*names, type=flag.kind, required=flag.required, metavar=flag.value, help=flag.meaning)
        else:
            made.add_argument(*names, action="store_true", help=flag.meaning)


def add_backend_options(made: Group) -> None:
    """The choices that backends leave to the user, as their records declare them; those of backends from outside too."""
    from export.backends.options import option_flags
    from export.request import ExportRequest

    own = {field.name for field in fields(ExportRequest)}
    for option in option_flags():
        field = option.flag.removeprefix("--").replace("-", "_")
        if option.kind is None and field in own:
            made.add_argument(option.flag, action="store_true", help=option.meaning)
            continue
        destination = field if field in own else OPTION + option.name
        if option.kind is None:
            made.add_argument(option.flag, dest=destination, action="store_const", const=option.given, help=option.meaning)
        else:
            made.add_argument(option.flag, dest=destination, type=option.kind, metavar=option.letter, help=option.meaning)


def old_spelling(made: Parser) -> None:
    """``--codes`` was the name of ``--calibration``."""
    made.rename("--codes", "--calibration")


def request_of(kind: type[AnyRequest], given: Namespace) -> AnyRequest:
    """A request from the values of a command line; fields that no flag fills keep their defaults.

    Raises:
        UsageError: the request refuses a value.
    """
    values = vars(given)
    options = {name.removeprefix(OPTION): value for name, value in values.items() if name.startswith(OPTION)}
    chosen = {name: value for name, value in options.items() if value is not None}
    names = [field.name for field in fields(kind) if field.init]
    filled = {name: values[name] for name in names if name in values}
    return kind(**filled, **({"options": chosen} if "options" in names and "options" not in filled else {}))


def words_of(request: DataclassInstance, flags: tuple[ModelFlag, ...]) -> list[str]:
    """These flags, and those of backends' options, as they are typed for what a request asks, without what it leaves out."""
    from export.backends.options import option_flags

    given, words = vars(request), []
    for flag in flags:
        words += _words(flag.flag, given[flag.field])
    for option in option_flags():
        field = option.flag.removeprefix("--").replace("-", "_")
        words += _words(option.flag, given[field] if field in given else given["options"].get(option.name))
    return words


def _words(flag: str, value: object) -> list[str]:
    if value is None or value is False:
        return []
    return [flag] if value is True else [flag, str(value)]
