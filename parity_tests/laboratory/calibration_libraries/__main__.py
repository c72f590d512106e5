"""``python -m parity_tests.laboratory.calibration_libraries``; see parity_tests.laboratory.calibration_libraries.command."""

import sys

from parity_tests.laboratory.calibration_libraries.command import main

if __name__ == "__main__":
    sys.exit(main())
