"""``python -m calibrate.beside``; see calibrate.beside.command."""

import sys

from calibrate.beside.command import main

if __name__ == "__main__":
    sys.exit(main())
