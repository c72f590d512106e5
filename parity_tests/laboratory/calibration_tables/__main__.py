"""``python -m parity_tests.laboratory.calibration_tables FILE...``."""

import sys

from parity_tests.laboratory.calibration_tables.command import main

sys.exit(main(sys.argv[1:]))
