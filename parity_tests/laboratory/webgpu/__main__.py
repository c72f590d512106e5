"""``python -m parity_tests.laboratory.webgpu``."""

from __future__ import annotations

import sys

from parity_tests.laboratory.webgpu.command import main

if __name__ == "__main__":
    sys.exit(main())
