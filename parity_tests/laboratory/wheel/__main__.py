"""``python -m parity_tests.laboratory.wheel``."""

import sys

from parity_tests.laboratory.wheel.command import main

if __name__ == "__main__":
    sys.exit(main())
