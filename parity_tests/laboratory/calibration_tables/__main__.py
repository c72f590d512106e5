"""``python -m parity_tests.laboratory.calibration_tables FILE...``."""

import sys

from parity_tests.laboratory.calibration_tables.command import main

if __name__ == "__main__":
    sys.exit(main())
