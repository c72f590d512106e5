"""What optimum finds of edgeproof: a wheel carries this file as ``optimum/commands/register/register_edgeproof.py``."""

from export.command.optimum_cli import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
