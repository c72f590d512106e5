"""``python -m targets``: the targets, what each contains and needs, its precisions, and the devices."""

from __future__ import annotations

import argparse
import json
import sys

from export.plan.listing import as_json, as_text
from runtime_py.errors import EdgeproofError


def main(arguments: list[str] | None = None) -> int:
    """Print the listing; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m targets", description="List targets and devices.", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--brief", action="store_true", help="without what each family's layers cannot hold")
    given = parser.parse_args(arguments)
    try:
        text = json.dumps(as_json(not given.brief), ensure_ascii=False, indent=2) if given.json else as_text(not given.brief)
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
