"""``edgeproof completions SHELL``: a script that completes verbs, flags and names in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command
from runtime_py.command.parser import Parser
from runtime_py.errors import ExitCode

SHELLS = ("bash", "zsh", "fish")

HOW = """\
to use it:
  bash  edgeproof completions bash > ~/.local/share/bash-completion/completions/edgeproof
  zsh   edgeproof completions zsh > ~/.zfunc/_edgeproof, where fpath holds ~/.zfunc
  fish  edgeproof completions fish > ~/.config/fish/completions/edgeproof.fish
"""

Words = Callable[[], Mapping[str, Sequence[str]]]
"""What a value may be, by the name that --help gives it, such as ``TARGET``."""


def command(root: Callable[[], Command], prog: str, words: Words) -> Command:
    """The verb, for the command whose verbs and flags are completed."""

    def parser(typed: str) -> Parser:
        made = Parser(typed, "Print a script that completes verbs, flags and names in a shell.", HOW)
        made.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
        flags.talk(made)
        return made

    def run(options: argparse.Namespace) -> int:
        console.out(script(root(), prog, options.shell, words()))
        return int(ExitCode.OK)

    return Command(parser, run)


def script(root: Command, prog: str, shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """The script for one of `SHELLS`."""
    import shtab

    made = argparse.ArgumentParser(prog=prog, description=root.summary)
    _grow(made, root, prog, words)
    text: str = shtab.complete(made, shell=shell)
    return text.rstrip("\n")


def _grow(made: argparse.ArgumentParser, branch: Command, prog: str, words: Mapping[str, Sequence[str]]) -> None:
    """Hang the verbs of a command below its parser, and say of every flag what its value may be."""
    import shtab

    files = {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE}
    for action in made._actions:
        if isinstance(action.metavar, str):
            if action.metavar in files:
                action.complete = files[action.metavar]  # type: ignore[attr-defined]  # read by shtab
            elif action.metavar in words:
                action.choices = tuple(words[action.metavar])
    if not branch.verbs:
        return
    below = made.add_subparsers()
    for verb in branch.verbs:
        leaf, typed = verb.load(), f"{prog} {verb.name}"
        parents = [leaf.parser(typed)] if leaf.parser is not None else []
        child = below.add_parser(verb.name, help=verb.summary, parents=parents, add_help=False, prog=typed)
        _grow(child, leaf, typed, words)
