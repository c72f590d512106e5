"""llama.cpp's server in a process of its own, until its standard input ends.

Run by an interpreter that has xllamacpp, the server of llama.cpp as a Python module:

    python llama_server.py decoder.gguf mmproj.gguf THREADS SLOTS CONTEXT

Prints its address as a line. Settings are the server's own but for these: as many slots (``--parallel``), each with the
context; no copies of caches in memory between requests, which would only cost time where no request begins like another.
"""

from __future__ import annotations

import sys


def main(model: str, tower: str, threads: int, slots: int, context: int) -> None:
    """Serve until nobody holds the other end of standard input."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.mmproj.path = tower
    settings.n_parallel = slots
    settings.n_ctx = slots * context
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    settings.n_gpu_layers = 0
    settings.cache_ram_mib = 0
    settings.port = 0
    settings.verbosity = 1
    server = xllamacpp.Server(settings)
    sys.stdout.write(f"{server.listening_address}\n{xllamacpp.get_system_info()}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(number) for number in sys.argv[3:6]))
