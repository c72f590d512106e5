"""``optimum-cli export edgeproof``: the same flags, work and exit codes as ``python -m export``.

Hugging Face's optimum imports every file of the folder ``optimum/commands/register`` and takes what ``REGISTER_COMMANDS`` of
it lists (huggingface/optimum, optimum/commands/optimum_cli.py); a wheel carries ``register_edgeproof.py`` there.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, _HelpAction

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

NAME = "edgeproof"
PROG = f"optimum-cli export {NAME}"


class EdgeproofExportCommand(BaseOptimumCLICommand):
    """The command."""

    COMMAND = CommandInfo(name=NAME, help="Export a vision-language model to a verified package for phones, GPUs and CPUs.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Give optimum's parser the flags of the export, so that its --help shows them."""
        from export.command import cli

        for group in cli.parser(PROG)._action_groups:
            actions = [action for action in group._group_actions if not isinstance(action, _HelpAction)]
            shown = parser.add_argument_group(group.title, group.description) if actions else parser
            for action in actions:
                shown._add_action(action)

    def run(self) -> None:
        """Run the export on what was typed after the command's name; ends the program with its exit code."""
        from export.__main__ import export_command
        from runtime_py.command.dispatch import execute

        sys.exit(execute(export_command(), PROG, sys.argv[sys.argv.index(NAME) + 1 :]))


REGISTER_COMMANDS = [(EdgeproofExportCommand, ExportCommand)]
