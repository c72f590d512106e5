"""``python -m parity_tests.laboratory.page_check``."""

import sys

from parity_tests.laboratory.page_check.command import main

if __name__ == "__main__":
    sys.exit(main())
