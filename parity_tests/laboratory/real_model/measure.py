"""The measurements behind docs/results/real_model.md: exports, calibrations, faults, shells, samples, photographs."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity_tests.judging.metrics import HIGHER_IS_BETTER
from parity_tests.laboratory.real_model import material
from parity_tests.laboratory.real_model.work import Work, measured, product, run
from parity_tests.second_opinion.subject import PHOTOGRAPH
from runtime_py.errors import MachineError

EXPORTS: Mapping[str, Sequence[str]] = {
    "cpu int4": ("--target", "cpu", "--precision", "int4"),
    "cpu int4, block 64": ("--target", "cpu", "--precision", "int4", "--block-size", "64"),
    "cpu fp16": ("--target", "cpu", "--precision", "fp16"),
    "cpu fp32": ("--target", "cpu", "--precision", "fp32"),
    "android int4": ("--target", "android", "--precision", "int4"),
    "desktop-gpu int4": ("--target", "desktop-gpu", "--precision", "int4"),
}

CALIBRATED: Mapping[str, Sequence[str]] = {"gptq": (), "gptq, scales tuned": ("--tune-scales", "8")}
"""What ``python -m calibrate --method gptq`` is given beside the target; a step of tuning takes most of a minute."""

ON = ("cpu", "android")
"""Targets whose int4 packages get calibrated codes."""

SHELLS = ("qwen2-vl", "wemm", "minicpm-llama3-v")
"""The layout that the others are made from, and two of `parity_tests.laboratory.real_model.shells`."""

DEMOS = ("cpu int4", "android int4")
"""Exports of every family's demo, for comparison."""

SETS = ("general", "machine")
"""Sets of samples that nobody has to bring."""


def exported(
    work: Work, name: str, flags: Sequence[str], model: str = "qwen2-vl", of: Path | str | None = None
) -> dict[str, Any]:
    """An export with its check: predicted and measured peak, verdict, and the largest figure of every comparison.

    Args:
        name: of the package.
        of: its checkpoint, ``demo`` for the family's; None for the one as the file has it.
    """
    asked = product("export", "--model", model, "--weights", of or work.checkpoint, *flags)
    predicted = json.loads(run([*asked, "--dry-run", "--json"]))
    peak = measured([*asked, "-o", str(work.package(name)), "--force"])
    manifest = work.package(name) / "manifest.json"
    verification = json.loads(manifest.read_text(encoding="utf-8"))["verification"] if manifest.is_file() else {}
    return {
        **peak,
        "predicted_peak": predicted["export_peak_bytes"],
        "bits_per_weight": predicted["bits_per_weight"],
        "verdict": verification.get("verdict", "no package"),
        "first_failure": verification.get("first_failure") or "",
        "largest": largest(verification.get("probes", [])),
    }


def largest(probes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Comparison to [share of the limit, probe, metric, figure, limit] of the figure nearest to its limit or beyond.

    A figure that is missing or not a number is beyond every limit.
    """
    worst: dict[str, list[Any]] = {}
    for probe in probes:
        for metric, limit in probe["limits"].items():
            figure = float(probe["metrics"].get(metric, "nan"))
            share = share_of(metric, figure, float(limit))
            if share > worst.get(probe["comparison"], [-1.0])[0]:
                worst[probe["comparison"]] = [share, f"{probe['question']} {probe['name']}", metric, figure, limit]
    return worst


def share_of(metric: str, figure: float, limit: float) -> float:
    """How far a figure is on the way to its limit; of cosines, the distances from 1; infinite for NaN."""
    if math.isnan(figure):
        return math.inf
    if HIGHER_IS_BETTER[metric]:
        return (1 - figure) / (1 - limit) if limit < 1 else 0.0 if figure >= limit else math.inf
    return figure / limit if limit else 0.0 if figure <= 0 else math.inf


def calibrated(work: Work, target: str, name: str, flags: Sequence[str]) -> dict[str, Any]:
    """A target's int4 package with codes of a method."""
    codes = work.package(f"codes {target} {name}")
    asked = product("calibrate", "--model", "qwen2-vl", "--weights", work.checkpoint, "--target", target)
    spent = measured([*asked, "--method", "gptq", "--samples", str(work.samples), *flags, "-o", str(codes), "--force"])
    given = (*EXPORTS[f"{target} int4"], "--calibration", str(codes))
    return {**exported(work, f"{target} {name}", given), "calibration": spent}


def compared(work: Work, settings: Sequence[str], methods: str) -> Any:
    """The table of ``calibrate compare`` on the text, as JSON."""
    asked = product("calibrate", "compare", "--model", "qwen2-vl", "--weights", work.checkpoint)
    on = [part for setting in settings for part in ("--on", setting)]
    given = ["--text", str(work.text), "--tokens", str(work.tokens), "--samples", str(work.samples)]
    return json.loads(run([*asked, *on, "--methods", methods, *given, "--json"]))


def sets_compared(work: Work) -> Any:
    """The same method on each of `SETS`."""
    return compared(work, ["cpu:32"], ",".join(f"gptq:{name}" for name in SETS))


def broken(work: Work, package: str, layer: int, fault: str) -> list[str]:
    """The row of `parity_tests.laboratory.break_package` for one fault of a package.

    Raises:
        MachineError: there is no package.
    """
    folder = work.package(package)
    if not (folder / "manifest.json").is_file():
        raise MachineError(f"{folder} holds no package", "one to break", "export it by hand and see why it fails")
    asked = product("parity_tests.laboratory.break_package", folder, work.checkpoint, "--layer", str(layer))
    slow = ["--one-question"] if package.startswith("android") else []
    rows = run([*asked, "--fault", fault, *slow], codes=(0, 2, 5)).splitlines()[2:]
    return [row for row in rows if "no place for it" not in row]


def opinion(checkpoint: Path) -> dict[str, Any]:
    """What transformers says of a checkpoint's reference: the verdict, and the error and limit of all logits by question."""
    said = json.loads(run(product("parity_tests", "--second-opinion", "--checkpoint", checkpoint, "--json"), codes=(0, 5)))
    logits = {row["what"]: [row["error"], row["limit"]] for row in said["opinions"] if "logits" in row["what"]}
    return {"verdict": said["verdict"], "first_failure": said["first_failure"], "logits": logits}


def shelled(work: Work, name: str, seed: int | None) -> dict[str, Any]:
    """The decoder in a family's layout: its reference against transformers, its cpu packages against the reference."""
    checkpoint = material.shell(work, name, seed)
    packages = {
        precision: exported(work, f"shell {name} {seed or ''} {precision}", EXPORTS[f"cpu {precision}"], name, checkpoint)
        for precision in (("int4",) if seed else ("fp32", "int4"))
    }
    return {"opinion": opinion(checkpoint), "packages": packages}


def photographed(work: Work, package: str) -> dict[str, Any]:
    """Questions about the photographs of installed packages: preprocessing against transformers, the package's answers.

    Raises:
        MachineError: the package index cannot be reached.
    """
    here = {"PYTHONPATH": f"{Path(__file__).parents[3]}{os.pathsep}{material.photographs(work)}"}
    listed = "from calibrate.samples.machine import photographs; print(*photographs(), sep=chr(10))"
    files = [Path(line) for line in run([sys.executable, "-c", listed], variables=here).splitlines() if line]
    asked = product("parity_tests", "--second-opinion", "--checkpoint", work.checkpoint, "--json")
    said = json.loads(run(asked, (0, 5), here))["opinions"]
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            shutil.copyfile(file, Path(scratch) / file.name)
        asked = product("parity_tests", "--package", work.package(package), "--reference", work.checkpoint, "--json")
        told = json.loads(run([*asked, "--data", scratch, "--steps", "4", "--inside", "never"], (0, 5)))
    probes = [
        {**probe, "comparison": comparison["name"], "question": comparison["question"]}
        for comparison in told["comparisons"]
        for probe in comparison["probes"]
    ]
    return {
        "files": [file.name for file in files],
        "opinions": [row for row in said if PHOTOGRAPH in row["what"]],
        "verdict": told["verdict"],
        "largest": largest(probes),
    }
