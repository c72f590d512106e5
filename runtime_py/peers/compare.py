"""Rates of a package beside those of its peers, measured in turns, each in a process of its own that stays loaded.

In every round each engine does the same once: reads the prompt, then steps behind each length. So a drift of the machine
touches all alike, and the ratio of a round is of one moment. Figures are medians over rounds; the first round warms up and
is left out. Nobody works while another one does. What memory gives is read just before and just after the steps of each
engine, with as many threads, since neighbours of a virtual machine change it from one second to the next.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime_py.errors import MachineError, UsageError
from runtime_py.peers.engine import Job
from runtime_py.peers.machine import ReadBandwidth, describe, joules
from runtime_py.peers.reads import Reads
from runtime_py.peers.shape import shape_of
from runtime_py.peers.worker import ENGINES, OWN

log = logging.getLogger("edgeproof")

PREFILL = "prefill"
DECODE = "decode at"
SCHEMA = 1
NOT_RUN = "not run"


@dataclass(frozen=True)
class Comparison:
    """What to measure.

    Attributes:
        peers: names of `ENGINES` beside the package itself.
        prompt_tokens: of the prefill figure; lengths: positions filled before the steps of each decode figure.
        new_tokens: steps of each decode figure.
        python: an interpreter that has the peers; this one when None.
        chunk: tokens of a prompt in one call of the package's decoder; 0 for the package's own.
        trust: of code that the package brings (`runtime_py.model.load`).
    """

    folder: Path
    peers: tuple[str, ...]
    threads: int
    rounds: int
    prompt_tokens: int
    lengths: tuple[int, ...]
    new_tokens: int
    python: str | None = None
    chunk: int = 0
    trust: str | bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.peers if name not in ENGINES or name == OWN]
        if unknown:
            known = ", ".join(name for name in ENGINES if name != OWN)
            raise UsageError(f"peers {', '.join(unknown)}", f"some of {known}", "correct the names")
        if min(self.threads, self.rounds, self.prompt_tokens, self.new_tokens, *self.lengths) < 1:
            raise UsageError("threads, rounds, lengths or tokens below 1", "at least 1", "correct the numbers")


class Worker:
    """A peer's process.

    Attributes:
        missing: why it is not run; "" where it is.
        reads: by a step; None where that is not known.
    """

    def __init__(self, name: str, job: Job, python: str) -> None:
        self.name = name
        command = [python, "-m", "runtime_py.peers.worker", name, json.dumps(job.to_json())]
        root = Path(__file__).parents[2]
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, text=True, cwd=root
        )
        told = self._read_reply()
        self.missing: str = told.get("missing", "")
        self.version: str = told.get("version", "")
        self.load: float = told.get("load", 0.0)
        for text in told.get("warnings", []):
            log.warning("%s", text)
        self.reads = Reads(**told["reads"]) if told.get("reads") else None
        self.peak = 0

    def _read_reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"missing": f"its process ended with {self._process.wait()}{self._last_words()}"}
        told: dict[str, Any] = json.loads(line)
        return told

    def _last_words(self) -> str:
        """The last line that it wrote to stderr; all of them are logged."""
        self._complaints.seek(0)
        lines = [line for line in self._complaints.read().splitlines() if line.strip()]
        for line in lines:
            log.info("%s: %s", self.name, line)
        return f": {lines[-1].strip()}" if lines else ""

    def ask(self, verb: str, count: int) -> dict[str, Any]:
        """Seconds and processor seconds of some work.

        Raises:
            MachineError: its process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {count}\n")
        self._process.stdin.flush()
        told = self._read_reply()
        if "missing" in told:
            raise MachineError(f"{self.name}: {told['missing']}", "to run on", "leave it out of --peers")
        self.peak = told["peak"]
        return told

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._complaints.close()


def compare(asked: Comparison) -> dict[str, Any]:
    """The figures as JSON (runtime_py/files/schemas/bench.schema.json).

    Raises:
        UsageError: the package states no sizes of its decoder.
        MachineError: the package, or a peer in the middle of its work, fails.
    """
    shape = shape_of(asked.folder)
    most = max(asked.prompt_tokens, *asked.lengths) + asked.new_tokens + 1
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch, ExitStack() as closing:
        job = Job(asked.folder.resolve(), Path(scratch), shape, asked.threads, most, asked.chunk, asked.trust)
        workers = []
        for name in (OWN, *asked.peers):
            worker = Worker(name, job, sys.executable if name == OWN else asked.python or sys.executable)
            closing.callback(worker.close)
            workers.append(worker)
        if workers[0].missing:
            raise MachineError(f"the package does not run: {workers[0].missing}", "a package", "ask it with chat first")
        here = [worker for worker in workers if not worker.missing]
        memory = ReadBandwidth(asked.threads)
        rounds = [_round(asked, here, memory) for _ in range(asked.rounds + 1)][1:]
    given = [turn.read for taken in rounds for figures in taken.values() for turn in figures.values() if turn.read]
    return {
        "schema": SCHEMA,
        "machine": {**describe(), "threads": asked.threads, "read_bytes_per_second": _spread(given)},
        "shape": {**shape.to_json(), "weights_read_per_token": shape.weights},
        "rounds": asked.rounds,
        "new_tokens": asked.new_tokens,
        "engines": [_engine(worker, rounds) for worker in workers],
    }


@dataclass(frozen=True)
class Turn:
    """What one engine did once.

    Attributes:
        rate: tokens a second; busy: processor seconds a token; energy: joules a token where the machine says them.
        read: bytes a second that memory gave beside it; 0 where nobody asked.
        share: of them that the engine read; None where it is not known what it reads.
    """

    rate: float
    busy: float
    energy: float | None
    read: float = 0.0
    share: float | None = None


def _round(asked: Comparison, here: Sequence[Worker], memory: ReadBandwidth) -> dict[str, dict[str, Turn]]:
    """By engine and figure."""
    taken: dict[str, dict[str, Turn]] = {}
    for worker in here:
        rows = taken[worker.name] = {}
        rows[f"{PREFILL} {asked.prompt_tokens}"] = _timed(worker, "fill", asked.prompt_tokens)
        for length in asked.lengths:
            worker.ask("fill", length)
            before = memory.measure()
            turn = _timed(worker, "step", asked.new_tokens)
            # of both times together, not of both rates
            read = 2 / (1 / before + 1 / memory.measure())
            step = None if worker.reads is None else worker.reads.of_step(length, asked.new_tokens)
            share = None if step is None else step * turn.rate / read
            rows[f"{DECODE} {length}"] = replace(turn, read=read, share=share)
    return taken


def _timed(worker: Worker, verb: str, count: int) -> Turn:
    before = joules()
    told = worker.ask(verb, count)
    after = joules()
    energy = None if before is None or after is None or after < before else (after - before) / count
    return Turn(count / told["seconds"], told["processor"] / count, energy)


def _engine(worker: Worker, rounds: Sequence[dict[str, dict[str, Turn]]]) -> dict[str, Any]:
    if worker.missing:
        return {"name": worker.name, "status": NOT_RUN, "reason": worker.missing}
    figures = {}
    for figure in rounds[0][worker.name]:
        turns = [taken[worker.name][figure] for taken in rounds]
        ratios = [taken[OWN][figure].rate / taken[worker.name][figure].rate for taken in rounds]
        energy = [turn.energy for turn in turns if turn.energy is not None]
        shares = [turn.share for turn in turns if turn.share is not None]
        figures[figure] = {
            "tokens_per_second": _spread([turn.rate for turn in turns]),
            "processor_seconds_per_token": statistics.median(turn.busy for turn in turns),
            "joules_per_token": statistics.median(energy) if energy else None,
            "ours_over_this": _spread(ratios),
        }
        if figure.startswith(DECODE):
            figures[figure]["read_share"] = _spread(shares) if shares else None
    return {
        "name": worker.name, "status": "run", "version": worker.version, "load_seconds": worker.load,
        "peak_resident_bytes": worker.peak, "figures": figures,
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def lines(told: dict[str, Any]) -> list[str]:
    """The table for people: an engine a row, rates and how many times ours that is."""
    machine, ran = told["machine"], [engine for engine in told["engines"] if engine["status"] == "run"]
    figures = list(ran[0]["figures"])
    rows = [["engine", *figures, "load", "peak"]]
    for engine in ran:
        cells = []
        for figure in figures:
            taken = engine["figures"][figure]
            ratio = "" if engine is ran[0] else f" (ours {taken['ours_over_this']['median']:.2f})"
            cells.append(f"{taken['tokens_per_second']['median']:.1f}{ratio}")
        peak = f"{engine['peak_resident_bytes'] / 1e9:.2f} GB"
        rows.append([f"{engine['name']} {engine['version']}", *cells, f"{engine['load_seconds']:.1f} s", peak])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    absent = [engine for engine in told["engines"] if engine["status"] == NOT_RUN]
    table += [f"{engine['name']}: {NOT_RUN}: {engine['reason']}" for engine in absent]
    for figure in figures:
        shares = [(engine["name"], engine["figures"][figure].get("read_share")) for engine in ran]
        told_of = ", ".join(f"{name} {share['median']:.2f}" for name, share in shares if share)
        if told_of:
            table.append(f"{figure} read, of what memory gave beside it: {told_of}")
    read = machine["read_bytes_per_second"]["median"] / 1e9
    sets = ", ".join(machine["instructions"]) or "unknown"
    return [
        *table,
        f"tokens a second, medians of {told['rounds']} rounds; {machine['threads']} threads of {machine['processor']}"
        f" ({sets}), which read {read:.1f} GB a second",
    ]
