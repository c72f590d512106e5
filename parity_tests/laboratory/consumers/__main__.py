"""``python -m parity_tests.laboratory.consumers``."""

import sys

from parity_tests.laboratory.consumers.command import main

if __name__ == "__main__":
    sys.exit(main())
