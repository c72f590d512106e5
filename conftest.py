"""Packages that tests export are trusted in a file of the tests' own, never in the user's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("EDGEPROOF_TRUST", str(Path(tempfile.mkdtemp(prefix="edgeproof-trust-")) / "trusted"))
