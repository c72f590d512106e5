"""``python -m parity_tests.laboratory.wheel``."""

import sys

from parity_tests.laboratory.wheel.command import main

sys.exit(main())
