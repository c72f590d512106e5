"""``python -m runtime_py``."""

import sys

from runtime_py.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
