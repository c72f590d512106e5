"""Calibration methods by their command-line names; each is one file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from calibrate.methods.base import Method

METHODS = {
    "mse-clip": "calibrate.methods.mse_clip:MseClip",
    "gptq": "calibrate.methods.gptq:Gptq",
    "awq": "calibrate.methods.awq:Awq",
    "awq-gptq": "calibrate.methods.awq_gptq:AwqGptq",
    "hqq": "calibrate.methods.hqq:Hqq",
    "sign-rounding": "calibrate.methods.sign_rounding:SignRounding",
    "block-sign-rounding": "calibrate.methods.block_sign_rounding:BlockSignRounding",
}
"""Method name to ``module:class``."""

RENAMED = {"rtn": "mse-clip"}
"""Names that methods had before; ``rtn`` is now the field's word for plain rounding, which needs no calibration."""


def refuse_unknown(name: str, flag: str = "--method") -> None:
    """Raise UsageError unless there is a method of this name; one that was renamed is told by its new name."""
    if name in RENAMED:
        raise UsageError(
            f"{flag} {name}",
            f"{RENAMED[name]}, as this method is called now; {name} is plain rounding, what an export does uncalibrated",
            f"write {flag} {RENAMED[name]}, or export without a calibration",
        )
    if name not in METHODS:
        raise UsageError(f"{flag} {name}", "one of " + ", ".join(METHODS), "choose one of these")


def method_named(name: str) -> Method:
    """A new method object.

    Raises:
        UsageError: there is no such method, or it has another name now.
    """
    refuse_unknown(name)
    module, _, attribute = METHODS[name].partition(":")
    made: Method = getattr(importlib.import_module(module), attribute)()
    return made
