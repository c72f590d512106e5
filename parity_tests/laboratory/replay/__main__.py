"""``python -m parity_tests.laboratory.replay``."""

import sys

from parity_tests.laboratory.replay.command import main

if __name__ == "__main__":
    sys.exit(main())
