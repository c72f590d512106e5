"""How long llama.cpp takes to open a model, and what it then holds; run by an interpreter that has xllamacpp.

    python llama_load.py library decoder.gguf [CONTEXT]
    python llama_load.py server decoder.gguf mmproj.gguf THREADS CONTEXT

``library`` is the one call ``llama_model_load_from_file`` with its default settings, the least that llama.cpp can take, and
where a context is wanted ``llama_init_from_model``, whose parameters begin with its positions. ``server`` is its server of
one slot until it can be asked, tower and context included, without the request that it else warms up with. Prints a line
of JSON: seconds, processor seconds, and resident bytes by kind.

The parameters' structure is passed as it came from ``llama_model_default_params``, by value and unread; where it is larger
here than in the library, the calling convention of x86-64 Linux lets that pass (include/llama.h of ggml-org/llama.cpp).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("VmRSS", "RssAnon", "RssFile", "VmHWM")


class Parameters(ctypes.Structure):
    """Room for any structure of parameters."""

    _fields_ = (("content", ctypes.c_ubyte * 512),)


def library(model: str, context: int = 0) -> Callable[[], Any]:
    """The call that opens a model by the C interface, and a context of so many positions unless 0."""
    import xllamacpp

    (path,) = Path(xllamacpp.__path__[0]).glob("*.so")
    called = ctypes.CDLL(str(path))
    called.llama_model_default_params.restype = Parameters
    called.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Parameters]
    called.llama_model_load_from_file.restype = called.llama_init_from_model.restype = ctypes.c_void_p
    called.llama_context_default_params.restype = Parameters
    called.llama_init_from_model.argtypes = [ctypes.c_void_p, Parameters]
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    called.llama_log_set(silent, None)
    called.llama_backend_init()

    wanted = called.llama_context_default_params()
    ctypes.c_uint32.from_buffer(wanted).value = context

    def opened() -> Any:
        made = called.llama_model_load_from_file(model.encode(), called.llama_model_default_params())
        if not made or (context and not called.llama_init_from_model(made, wanted)):
            raise SystemExit(f"llama.cpp does not load {model}")
        return silent  # which the library calls as long as it lives

    return opened


def server(model: str, tower: str, threads: int, context: int) -> Callable[[], Any]:
    """The call that opens a server."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = model, tower
    settings.n_parallel, settings.n_ctx = 1, context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.n_gpu_layers = settings.cache_ram_mib = settings.port = 0
    settings.verbosity, settings.warmup = 1, False
    return lambda: xllamacpp.Server(settings)


def main(way: str, *given: str) -> None:
    """Open, tell, and end without closing."""
    numbers = [int(number) for number in given[1 if way == "library" else 2 :]]
    call = library(given[0], *numbers) if way == "library" else server(given[0], given[1], *numbers)
    began, busy = time.perf_counter(), time.process_time()
    held = call()
    seconds, processor = time.perf_counter() - began, time.process_time() - busy
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    figures = {kind: int(status[kind].split()[0]) * 1024 for kind in KINDS}
    sys.stdout.write(json.dumps({"seconds": seconds, "processor": processor, **figures}) + "\n")
    sys.stdout.flush()
    os._exit(0 if held else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
