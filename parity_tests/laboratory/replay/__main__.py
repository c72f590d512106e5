"""``python -m parity_tests.laboratory.replay``."""

import sys

from parity_tests.laboratory.replay.command import main

sys.exit(main())
