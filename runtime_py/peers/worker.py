"""One peer in a process of its own: loads, then does what each line of stdin says, and answers with a line of JSON.

    python -m runtime_py.peers.worker NAME JOB

JOB is `runtime_py.peers.engine.Job` as JSON. Lines: ``fill N`` and ``step N``, answered with seconds and processor seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime_py.errors import EdgeproofError
from runtime_py.memory import peak_resident_bytes
from runtime_py.peers.engine import Job, NotHereError, PeerEngine


def _own(job: Job) -> PeerEngine:
    from runtime_py.peers.own import Own

    return Own(job)


def _llama_cpp(flash: bool) -> Callable[[Job], PeerEngine]:
    def opened(job: Job) -> PeerEngine:
        from runtime_py.peers.llama_cpp import LlamaCpp

        return LlamaCpp(job, flash)

    return opened


def _genai(job: Job) -> PeerEngine:
    from runtime_py.peers.genai import Genai

    return Genai(job)


def _pytorch(job: Job) -> PeerEngine:
    from runtime_py.peers.pytorch import PyTorch

    return PyTorch(job)


def _openvino(job: Job) -> PeerEngine:
    from runtime_py.peers.openvino_genai import OpenVinoGenai

    return OpenVinoGenai(job)


OWN = "edgeproof"
ENGINES: Mapping[str, Callable[[Job], PeerEngine]] = {
    OWN: _own,
    "llama.cpp": _llama_cpp(flash=False),
    "llama.cpp-flash": _llama_cpp(flash=True),
    "onnxruntime-genai": _genai,
    "openvino-genai": _openvino,
    "pytorch": _pytorch,
}


class _Warnings(logging.Handler):
    """Keeps what it is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def main(name: str, job: str) -> None:
    """Runs until stdin ends."""
    told = os.fdopen(os.dup(1), "w")  # libraries print to stdout
    os.dup2(2, 1)

    def tell(**value: Any) -> None:
        told.write(json.dumps(value) + "\n")
        told.flush()

    heard = _Warnings()
    if name == OWN:
        logging.getLogger().addHandler(heard)
    began = time.perf_counter()
    try:
        engine = ENGINES[name](Job.from_json(json.loads(job)))
        engine.fill(2)
        engine.step(1)
    except (NotHereError, EdgeproofError) as error:
        tell(missing=str(error))
        return
    reads = getattr(engine, "reads", None)
    tell(
        version=getattr(engine, "version", ""),
        load=time.perf_counter() - began,
        reads=None if reads is None else reads.to_json(),
        warnings=heard.texts,
    )
    for line in sys.stdin:
        verb, count = line.split()
        began, busy = time.perf_counter(), time.process_time()
        (engine.fill if verb == "fill" else engine.step)(int(count))
        seconds, processor = time.perf_counter() - began, time.process_time() - busy
        tell(seconds=seconds, processor=processor, peak=peak_resident_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
