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
    ModelFlag("--target", "TARGET", "cpu, desktop-gpu, android, ios (edgeproof targets)", required=True),
    ModelFlag("--precision", "P", "int4, fp16, fp32 or a name of the target; default: the target's first"),
)
LIMITS = (
    ModelFlag("--context", "N", "positions in the cache, prompt and answer together", int),
    ModelFlag("--prefill-chunk", "N", "tokens fed to the decoder in one call at most", int),
)
BACKEND = (
    ModelFlag("--vision-precision", "P", "int8, fp16 or fp32 for the vision encoder (cpu, desktop-gpu)"),
    ModelFlag("--block-size", "N", "columns that share an int4 scale (cpu, desktop-gpu)", int),
    ModelFlag("--asymmetric", "", "int4 blocks with zero points of their own (cpu, desktop-gpu)"),
    ModelFlag("--embed-precision", "P", "int8, int4, fp16 or fp32 for the embedding (int4, ONNX files)"),
    ModelFlag("--head-precision", "P", "int4, int8 or fp16 for the language head (int4, ONNX files)"),
)
CALIBRATION = (ModelFlag("--calibration", "DIR", "folder of edgeproof calibrate, whose int4 codes are used", Path),)
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

EXPORT = (*MODEL, *TARGET, *LIMITS, *BACKEND, *CALIBRATION, *DEVICE, *OUTPUT, *AGAIN, *WAIVERS)
"""Everything that an export is asked on a command line."""


def add(made: Group, flags: tuple[ModelFlag, ...]) -> None:
    """Give a parser, or a group of one, some of the flags."""
    for flag in flags:
        names = [flag.short, flag.flag] if flag.short else [flag.flag]
        if flag.value:
            made.add_argument(*names, type=flag.kind, required=flag.required, metavar=flag.value, help=flag.meaning)
        else:
            made.add_argument(*names, action="store_true", help=flag.meaning)


def old_spelling(made: Parser) -> None:
    """``--codes`` was the name of ``--calibration``."""
    made.rename("--codes", "--calibration")


def request_of(kind: type[AnyRequest], given: Namespace) -> AnyRequest:
    """A request from the values of a command line; fields that no flag fills keep their defaults.

    Raises:
        UsageError: the request refuses a value.
    """
    return kind(**{f.name: getattr(given, f.name) for f in fields(kind) if f.init and hasattr(given, f.name)})
