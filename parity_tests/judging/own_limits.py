"""A user's own limits (``--thresholds``), which go before those of `parity_tests.thresholds`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from parity_tests.judging.metrics import HIGHER_IS_BETTER, Kind
from parity_tests.judging.standards import Limit, Limits, Standard, Table
from runtime_py.errors import UsageError
from runtime_py.files.json_file import MEGABYTE, parse_json, read_bytes


def read_limits(path: Path) -> Table:
    """Limits from a JSON or TOML file ``{standard: {kind: {metric: bound}}}``; what it leaves out keeps the default.

    Raises:
        UsageError: no such file, no JSON, or a name that is no standard, kind or metric.
    """
    try:
        content = read_bytes(path, MEGABYTE, UsageError, "name a file of limits")
        value = tomllib.loads(content.decode()) if path.suffix == ".toml" else parse_json(content, path, UsageError)
        table: dict[Standard, dict[Kind, Limits]] = {}
        for standard, kinds in value.items():
            rows = table.setdefault(Standard(standard), {})
            for kind, bounds in kinds.items():
                unknown = sorted(set(bounds) - set(HIGHER_IS_BETTER))
                if unknown:
                    raise ValueError(f"no metric is named {', '.join(unknown)}")
                rows[Kind(kind)] = tuple(Limit(name, float(bound), f"from {path.name}") for name, bound in bounds.items())
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} holds no thresholds: {error}",
            '{"<standard>": {"<kind>": {"<metric>": <bound>}}} with the names of parity_tests/thresholds.py',
            "correct the file; docs/parity_reports.md shows one",
        ) from error
    return table
