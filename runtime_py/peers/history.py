"""Figures kept from commit to commit, a line of JSON each, and new ones over earlier ones.

A rate depends on the machine of the day, so what is compared is a rate over a peer's in the same rounds, or, with
`against`, over that of another commit on the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime_py.peers.worker import OWN

SLOWER = 0.9
"""Of the last commit's rate; what is below counts as slower. Medians of five rounds differ by some per cent by chance."""


def entry(told: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What is kept of a comparison: the machine, the shape, every engine's medians and our ratios.

    Lines of before have no ``read_share``; what they say the machine read was read once a round, by a slower loop.
    """
    engines = {
        engine["name"]: {
            "version": engine["version"],
            **{
                figure: {
                    "tokens_per_second": round(taken["tokens_per_second"]["median"], 3),
                    "ours_over_this": round(taken["ours_over_this"]["median"], 3),
                    **({"read_share": round(taken["read_share"]["median"], 3)} if taken.get("read_share") else {}),
                }
                for figure, taken in engine["figures"].items()
            },
        }
        for engine in told["engines"]
        if engine["status"] == "run"
    }
    machine = told["machine"]
    return {
        "label": label,
        "processor": machine["processor"],
        "instructions": machine["instructions"],
        "threads": machine["threads"],
        "read_gigabytes_per_second": round(machine["read_bytes_per_second"]["median"] / 1e9, 2),
        "shape": told["shape"],
        "engines": engines,
    }


def append(path: Path, told: Mapping[str, Any], label: str) -> None:
    """Add a line; the file is made where it is not there."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry(told, label), sort_keys=True) + "\n")


def against(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """Our rate now over our rate then, by figure, for figures that both have; from one machine, of one shape."""
    ours = [next((engine for engine in told["engines"] if engine["name"] == OWN), None) for told in (now, before)]
    new, old = ((engine or {}).get("figures", {}) for engine in ours)
    return {
        figure: new[figure]["tokens_per_second"]["median"] / old[figure]["tokens_per_second"]["median"]
        for figure in new
        if figure in old
    }
