"""One picture and a question through the stages of a package, each timed, in this process.

    python stages.py PACKAGE THREADS TEXT

Runs with the ``runtime_py`` that the interpreter finds, of today or of commit 39bb49f, so that a package is run by the code
that wrote it. The package is a MiniCPM-V 1.0 and needs no tokenizer: the prompt is ids. Prints a line of JSON, what the
first round took with the opening of all stages, then one for each line of standard input: an empty one is
another round, a number the tower beside the prefill of as many text tokens.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 448
PREPARED, TOWER, CONNECTOR, EMBEDDED, PREFILLED, STEPPED = (
    "picture prepared",
    "tower",
    "connector",
    "embedded",
    "prefill",
    "step",
)


class Stages:
    """The package, opened by what ``runtime_py`` is there."""

    def __init__(self, folder: Path, threads: int, text: int) -> None:
        try:
            session: Any = importlib.import_module("runtime_py.generation.session")
        except ModuleNotFoundError:  # before it moved
            session = importlib.import_module("runtime_py.session")
        base: Any = importlib.import_module("runtime_py.preprocess.base")
        ort: Any = importlib.import_module("runtime_py.backends.ort")
        family: Any = importlib.import_module("runtime_py.preprocess.minicpm_v")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.backend = ort.OrtBackend(folder, manifest, threads=threads)
        for name in ("open_ahead", "expect"):  # as `runtime_py.model.Model.generate` does; expect was its name
            if hasattr(self.backend, name):
                getattr(self.backend, name)(manifest["contracts"])
        self.processor = family.Processor(manifest["runtime"], None)
        limits = session.Limits(manifest["limits"]["context"], manifest["limits"]["prefill_chunk"])
        self.session = session.Session(self.backend, self.processor, limits)
        rows = int(manifest["runtime"]["queries"])
        ids = np.arange(1000, 1000 + rows + text, dtype=np.int64)[None]
        image_rows = np.arange(rows + text) < rows
        positions = np.arange(rows + text, dtype=np.int64)[None]
        self.layout = base.Layout(ids, image_rows, {"position_ids": positions})
        self._draw = np.random.default_rng(0)

    def round(self) -> dict[str, float]:
        """Seconds of each stage for a picture of its own, and of the answer's first decoder call after the prompt."""
        picture = self._draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        took: dict[str, float] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            value = call()
            took[name] = time.perf_counter() - began
            return value

        run = self.backend.run
        (image,) = timed(PREPARED, lambda: self.processor.images([picture]))
        vision = timed(TOWER, lambda: run("vision_encoder", image.vision)["vision_features"])
        inputs = {"vision_features": vision, **image.connector}
        rows = timed(CONNECTOR, lambda: run("connector", inputs)["image_features"])
        merged = timed(EMBEDDED, lambda: self.session.merge(self.layout, [rows.reshape(-1, rows.shape[-1])]))
        timed(PREFILLED, lambda: self.session.prefill(merged, self.layout))
        timed(STEPPED, lambda: self.session.step(1000))
        return took

    def overlapped(self, tokens: int) -> dict[str, float]:
        """Seconds of the tower and of the prefill of text before its picture: one after the other, and at once."""
        picture = self._draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        (image,) = self.processor.images([picture])
        ids = np.arange(1000, 1000 + tokens, dtype=np.int64)[None]
        positions = {"position_ids": np.arange(tokens, dtype=np.int64)[None]}
        layout = type(self.layout)(ids, np.zeros(tokens, dtype=bool), positions)
        embeds = self.session.embed(ids)
        began = time.perf_counter()
        self.backend.run("vision_encoder", image.vision)
        seen = time.perf_counter()
        self.session.prefill(embeds, layout)
        alone = time.perf_counter()
        with ThreadPoolExecutor(1) as beside:
            tower = beside.submit(self.backend.run, "vision_encoder", image.vision)
            self.session.prefill(embeds, layout)
            tower.result()
        both = time.perf_counter() - alone
        return {TOWER: seen - began, PREFILLED: alone - seen, "in turn": alone - began, "at once": both}


def resident() -> dict[str, int]:
    """Bytes of this process by kind."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(status[kind].split()[0]) * 1024 for kind in ("VmRSS", "RssAnon", "RssFile")}


def main(folder: str, threads: int, text: int) -> None:
    """Runs until standard input ends."""
    began = time.perf_counter()
    stages = Stages(Path(folder), threads, text)
    took = stages.round()
    tell = {"cold": time.perf_counter() - began - took[STEPPED], "took": took, **resident()}
    while True:
        sys.stdout.write(json.dumps(tell) + "\n")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        took = stages.overlapped(int(line)) if line.strip() else stages.round()
        tell = {"took": took, **resident()}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
