"""``python -m parity_tests.laboratory.hostile_requests``."""

import sys

from parity_tests.laboratory.hostile_requests.command import main

if __name__ == "__main__":
    sys.exit(main())
