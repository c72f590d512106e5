"""``python -m calibrate``."""

from calibrate.command.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
