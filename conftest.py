"""Packages that tests export are trusted in a file of the tests' own, never in the user's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="edgeproof-trust-")
"""Removed when the interpreter ends."""

os.environ.setdefault("EDGEPROOF_TRUST", str(Path(FOLDER.name) / "trusted"))
