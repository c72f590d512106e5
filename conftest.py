"""Of every test process: its own file of trusted packages, and Ctrl-C as a terminal has it."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="edgeproof-trust-")
"""Packages that tests export are trusted in it, never in the user's; removed when the interpreter ends."""

os.environ.setdefault("EDGEPROOF_TRUST", str(Path(FOLDER.name) / "trusted"))

# a shell starts what runs in the background with Ctrl-C ignored, and tests of it would wait for ever
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
