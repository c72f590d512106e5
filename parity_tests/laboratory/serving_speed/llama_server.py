"""llama.cpp's server in a process of its own, until its standard input ends.

Run by an interpreter that has xllamacpp, llama.cpp's server as a Python module; or by any, with a program of llama.cpp's:

    python llama_server.py decoder.gguf mmproj.gguf THREADS SLOTS CONTEXT [llama-server]

Prints its address, what it was built for and the number of its process, a line each. Settings are the server's own but for
these: as many slots (``--parallel``), each with the context; no copies of caches in memory between requests, which would
only cost time where no request begins like another.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

PATIENCE = 120
"""Seconds that it has to load."""


def main(model: str, tower: str, threads: int, slots: int, context: int, program: str | None = None) -> None:
    """Serve until nobody holds the other end of standard input."""
    if program is None:
        _as_module(model, tower, threads, slots, context)
    else:
        _as_program(model, tower, threads, slots, context, program)


def _report_ready(address: str, built: str, process: int) -> None:
    sys.stdout.write(f"{address}\n{built}\n{process}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _as_module(model: str, tower: str, threads: int, slots: int, context: int) -> None:
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
    _report_ready(server.listening_address, xllamacpp.get_system_info(), os.getpid())


def _as_program(model: str, tower: str, threads: int, slots: int, context: int, program: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = {
        "-t": threads,
        "-tb": threads,
        "-np": slots,
        "-c": slots * context,
        "-ngl": 0,
        "--cache-ram": 0,
        "--port": port,
    }
    flags = [part for flag, number in numbers.items() for part in (flag, str(number))]
    command = [program, "-m", model, "--mmproj", tower, "--host", "127.0.0.1", *flags]
    version = subprocess.run([program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    built = " ".join(version.stdout.split())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the program is ended with this one
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(port, process)
            _report_ready(f"http://127.0.0.1:{port}", built, process.pid)
        finally:
            process.terminate()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until it says that it is well, its process has ended, or patience has."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{process.args!r} does not serve")


if __name__ == "__main__":
    threads, slots, context = (int(number) for number in sys.argv[3:6])
    main(sys.argv[1], sys.argv[2], threads, slots, context, *sys.argv[6:])
