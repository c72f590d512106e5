"""The one parser class of all programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from runtime_py.command.console import say
from runtime_py.command.failure import EXIT_CODES
from runtime_py.errors import UsageError, did_you_mean
from runtime_py.version import VERSION


class Parser(argparse.ArgumentParser):
    """Flags of one command: complaints are `UsageError`, none is understood from its first letters alone.

    Every parser has ``--help`` and ``--version``. ``--snake_case`` is taken for ``--snake-case``.

    Args:
        prog: what the user types before the flags, such as ``edgeproof chat``.
        epilog: shown as it is below the flags, above the exit codes.
    """

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"{epilog.rstrip()}\n\n{EXIT_CODES}".lstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"edgeproof {VERSION}", help="print the version and stop")
        self._renamed: dict[str, str] = {}
        self._removed: dict[str, str] = {}

    def rename(self, old: str, new: str) -> None:
        """Take an old spelling of a flag, with a note on stderr; --help does not show it."""
        self._renamed[old] = new

    def remove(self, flag: str, reason: str) -> None:
        """Refuse a flag of earlier versions with the reason why it is gone."""
        self._removed[flag] = reason

    def flags(self) -> list[str]:
        """Every spelling of every flag that --help shows."""
        return [
            flag for action in self._actions if action.help != argparse.SUPPRESS for flag in action.option_strings
        ]  # fmt: skip

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The values of a command line.

        Raises:
            UsageError: a flag that does not exist, a value that is missing or of the wrong kind.
        """
        given, left = self.parse_known_args(self._as_spelt_today(arguments))
        if left:
            raise self._unknown(left, arguments)
        return given

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "flags as listed by --help", f"run `{self.prog} --help`")

    def _as_spelt_today(self, arguments: Sequence[str]) -> list[str]:
        known = self._option_string_actions
        spelt: list[str] = []
        for place, argument in enumerate(arguments):
            if argument == "--":
                return [*spelt, *arguments[place:]]
            flag, equals, value = argument.partition("=")
            if argument.startswith("--"):
                flag = flag if flag in known else flag.replace("_", "-")
            if flag in self._removed:
                raise UsageError(f"{flag} is gone", self._removed[flag], "leave it out")
            if flag in self._renamed:
                say(f"note: {flag} is called {self._renamed[flag]} now")
                flag = self._renamed[flag]
            if argument.startswith("--") and flag not in known and " " not in argument:
                raise self._unknown([argument], arguments)
            spelt.append(flag + equals + value if flag in known else argument)
        return spelt

    def _unknown(self, left: Sequence[str], arguments: Sequence[str]) -> UsageError:
        first = left[0]
        expected, help_line = "flags as listed by --help", f"run `{self.prog} --help`"
        if "--json" in arguments and not first.startswith("-") and "--json-file" in self.flags():
            return UsageError(
                f"--json {first}", "--json alone, which prints to stdout", f"write a file with --json-file {first}"
            )
        what = "unknown flag" if first.startswith("-") else "cannot place"
        named = first.partition("=")[0]
        return UsageError(f"{what}: {' '.join(left)}", expected, did_you_mean(named, self.flags(), help_line))


def arguments_of(given: Sequence[str] | None) -> list[str]:
    """The arguments of a ``main``: those handed in, else the process's."""
    return list(sys.argv[1:] if given is None else given)
