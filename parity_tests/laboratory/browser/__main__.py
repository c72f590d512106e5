"""``python -m parity_tests.laboratory.browser``."""

from __future__ import annotations

import sys

from parity_tests.laboratory.browser.command import main

if __name__ == "__main__":
    sys.exit(main())
