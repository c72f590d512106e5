"""The real tritonserver as a process.

PyPI's nvidia-pytriton carries the binary and its Python backend. It lies in a Python environment of its own, with NumPy 1
and the repository's requirements; the variable EDGEPROOF_TRITON names it:

    python3.11 -m venv ENV && ENV/bin/pip install -r REPOSITORY/requirements.txt nvidia-pytriton==0.7.0 'tritonclient[grpc]'
    EDGEPROOF_TRITON=ENV python -m pytest runtime_py/triton
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

from runtime_py.errors import MachineError

VARIABLE = "EDGEPROOF_TRITON"
STUB = "triton_python_backend_stub"
CARRIED = ("NVML", "DCGM", "pinned", "CudaDriverHelper")
"""Words of warnings that a machine without a GPU gives; they mean nothing."""


@dataclass(frozen=True)
class TritonEnvironment:
    """A Python environment with nvidia-pytriton."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next(iter(sorted(self.folder.glob("lib/python3.*/site-packages"))), self.folder)

    @property
    def server(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    @property
    def version(self) -> str:
        """Of its Python: ``3.11``."""
        return self.packages.parent.name.removeprefix("python")


def environment() -> TritonEnvironment | None:
    """The environment that the variable names; None where there is none, or no server in it."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    here = TritonEnvironment(Path(named).absolute())
    return here if (here.server / "bin" / "tritonserver").is_file() else None


@dataclass
class TritonProcess:
    """A server over one repository.

    Attributes:
        workshop: for its backends, with the stub of the environment's Python, and its log.
        python: whose ``bin`` comes first in the server's PATH; None for the environment's.
        ports: of HTTP, gRPC and metrics; free ones where none are given.
    """

    environment: TritonEnvironment
    repository: Path
    workshop: Path
    python: Path | None = None
    ports: tuple[int, int, int] = (0, 0, 0)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not any(self.ports):
            self.ports = free_ports()

    @property
    def log(self) -> Path:
        return self.workshop / "server.log"

    def start(self, seconds: float = 120.0) -> None:
        """Start the server and wait until every model is ready.

        Raises:
            MachineError: it ended, or is not ready in time; its own words are in the message.
        """
        backends = self._backends()
        here = self.environment
        first = self.python or here.folder / "bin"
        surroundings = {
            **os.environ,
            "PATH": f"{first}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(
                (sysconfig.get_config_var("LIBDIR") or "", str(here.packages / "nvidia_pytriton.libs"))
            ),
        }
        surroundings.pop("PYTHONPATH", None)  # what is served is the repository's own runtime
        command = [
            str(here.server / "bin" / "tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), self.ports, strict=True)),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=surroundings, start_new_session=True, cwd=self.workshop
            )
        ends = time.monotonic() + seconds
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > ends:
                self.kill()
                raise MachineError(
                    f"tritonserver is not ready: {self.said()}", f"{self.repository} to load", f"look at {self.log}"
                )
            time.sleep(0.2)

    def ready(self) -> bool:
        """What ``/v2/health/ready`` says."""
        return self.get("/v2/health/ready")[0] == 200

    def get(self, path: str, port: int = 0) -> tuple[int, str]:
        """Status and body of a GET; status 0 where nobody answers. ``port`` is an index of `ports`."""
        return self.ask("GET", path, None, port)

    def ask(self, method: str, path: str, body: bytes | None, port: int = 0) -> tuple[int, str]:
        """Status and body of a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=120)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def said(self) -> str:
        """The last errors of its log."""
        return "; ".join(self.errors()[-3:])

    def errors(self) -> list[str]:
        """The errors of its log."""
        if not self.log.is_file():
            return []
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line for line in lines if line.startswith("E") and not any(word in line for word in CARRIED)]
        return [line.partition("] ")[2] for line in told]

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def resident(self) -> float:
        """Megabytes of the server and its stubs together."""
        assert self._process is not None
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getsid(int(status.parent.name)) != self._process.pid:
                    continue
                lines = status.read_text(encoding="ascii").splitlines()
                total += int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
            except (OSError, StopIteration, ValueError):
                continue
        return total / 1024

    def kill(self) -> None:
        """SIGKILL to the server; its stubs notice and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, as Kubernetes sends it; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9

    def _backends(self) -> Path:
        """The wheel's backends with the stub of the environment's Python in its place."""
        place = self.workshop / "backends"
        if not place.exists():
            shutil.copytree(self.environment.server / "backends", place)
            stub = self.environment.server / "python_backend_stubs" / self.environment.version / STUB
            shutil.copyfile(stub, place / "python" / STUB)
            (place / "python" / STUB).chmod(0o755)
        return place


def free_ports() -> tuple[int, int, int]:
    """Three ports that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    first, second, third = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return first, second, third
