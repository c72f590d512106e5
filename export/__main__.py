"""``python -m export``: where the export meets the check that ends it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from export.command import cli
from parity_tests.check.verifier import PackageVerifier


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return cli.main(arguments, PackageVerifier)


if __name__ == "__main__":
    sys.exit(main())
