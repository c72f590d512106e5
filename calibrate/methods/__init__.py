"""Calibration methods by their command-line names; each is one file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from calibrate.methods.base import Method

METHODS = {
    "rtn": "calibrate.methods.rtn:RoundToNearestClipped",
    "gptq": "calibrate.methods.gptq:Gptq",
    "awq": "calibrate.methods.awq:Awq",
    "awq-gptq": "calibrate.methods.awq_gptq:AwqGptq",
    "hqq": "calibrate.methods.hqq:Hqq",
    "sign-rounding": "calibrate.methods.sign_rounding:SignRounding",
    "block-sign-rounding": "calibrate.methods.block_sign_rounding:BlockSignRounding",
}
"""Method name to ``module:class``."""


def method_named(name: str) -> Method:
    """A new method object.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"--method {name}", "one of " + ", ".join(METHODS), "choose one of these")
    module, _, attribute = METHODS[name].partition(":")
    made: Method = getattr(importlib.import_module(module), attribute)()
    return made
