"""``python -m export``, and ``edgeproof``, which leads to every program: where the parts are put together."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from export.command import cli, models, push, scaffold, synthesis
from runtime_py.command import completions
from runtime_py.command.dispatch import Command, Verb, execute

if TYPE_CHECKING:
    from export.verification import Verifier

PROG, CONSOLE = "python -m export", "edgeproof"


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m export``: returns the exit code."""
    return execute(export_command(), PROG, arguments)


def edgeproof() -> NoReturn:
    """The console command."""
    _leave(execute(root(), CONSOLE))


def _leave(code: int) -> NoReturn:
    """End the process. What is left in memory goes with it: the search for cycles in it would take half a second."""
    gc.freeze()
    sys.exit(code)


def export_command() -> Command:
    """The export with its check, and what goes with it."""
    return cli.command(_verifier, OF_CHECKPOINTS)


def root() -> Command:
    """Every verb of ``edgeproof``."""
    verbs = (
        Verb("export", "take a checkpoint to a package and prove it", lambda: cli.command(_verifier)),
        Verb("calibrate", "choose int4 codes from sample data", _calibrate),
        *_runtime_verbs(),
        Verb("parity", "compare a package with its reference", _parity),
        Verb("targets", "list targets, devices and what fits them", _targets),
        *OF_CHECKPOINTS,
        Verb("completions", "print a completion script for bash, zsh or fish", _completions),
    )
    return Command(summary="From a vision-language checkpoint to a verified package for phones, GPUs and CPUs.", verbs=verbs)


def _verifier() -> Verifier:
    from parity_tests.check.verifier import PackageVerifier

    return PackageVerifier()


def _calibrate() -> Command:
    from calibrate.command.cli import COMMAND

    return COMMAND


def _parity() -> Command:
    from parity_tests.cli import COMMAND

    return COMMAND


def _targets() -> Command:
    from targets.__main__ import COMMAND

    return COMMAND


def _static_library() -> Command:
    from export.backends.mlc.static_library import COMMAND

    return COMMAND


def _runtime_verbs() -> tuple[Verb, ...]:
    from runtime_py.command.cli import VERBS

    return VERBS


def _completions() -> Command:
    return completions.command(root, CONSOLE, _words)


def _words() -> Mapping[str, Sequence[str]]:
    """What may stand where --help says so."""
    from export.families.registry import families
    from targets.devices import devices
    from targets.registry import targets

    aliases = [name for family in families().values() for name in (family.name, *family.aliases)]
    return {"MODEL": aliases, "TARGET": list(targets()), "NAME": list(devices())}


OF_CHECKPOINTS = (
    Verb("push", "upload a verified package to the model hub, with a model card", lambda: push.COMMAND),
    Verb("models", "list families, published checkpoints and demos", lambda: models.COMMAND),
    Verb("synthesize", "write a random checkpoint in a published layout", lambda: synthesis.COMMAND),
    Verb("new-family", "begin a new family as a working copy of another one", lambda: scaffold.COMMAND),
    Verb("static-library", "join the phone libraries of packages into one archive", _static_library),
)
"""Verbs of ``python -m export`` too."""


if __name__ == "__main__":
    _leave(main())
