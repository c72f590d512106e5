"""Jobs on the machines of a Ray cluster (https://docs.ray.io), or on this machine's processors where there is no cluster.

Ray carries the product to the workers (``runtime_env``'s ``working_dir``), queues the jobs, and tries a job again whose
worker died. What it does not bring are the libraries: each worker compares its own with those of the machine that asks.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from export.cluster.jobs import Died, Job
from export.cluster.product import here, pack
from export.cluster.worker import carry_out
from runtime_py.errors import EdgeproofError, MachineError

log = logging.getLogger("edgeproof")

Value = TypeVar("Value")

RETRIES = 2
"""How often a job is tried again whose worker was killed, ran out of memory or went away with its machine."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}
"""Of this process, unless the user has set them: nothing is reported to Ray's makers (on by default), and a job that runs
out of memory is not tried for ever (Ray's default, whatever ``max_retries`` says: ray-project/ray,
src/ray/common/ray_config_def.h)."""

STARTS = 2
"""How often a Ray of this machine's own is started at most. Its raylet gives helpers some 15 seconds to come up and ends
where they do not, which a machine that is busy, or reads Ray from a cold disk, may need more than once (ray-project/ray,
src/ray/raylet/node_manager.cc, WaitForDashboardAgentPorts; python/ray/_private/node.py then waits 30 seconds in vain)."""

GIGABYTE = 10**9

SECONDS = 10
"""For a cluster to take a connection."""


@dataclass(frozen=True)
class RayExecutor:
    """Carries out jobs on a cluster; `export.cluster.jobs.Executor`.

    Attributes:
        address: as ``ray.init`` takes it (``host:6379``, ``ray://host:10001``); "" for the cluster that this machine or
            ``RAY_ADDRESS`` belongs to, and for this machine alone where there is none.
    """

    address: str = ""

    def __call__(self, jobs: Sequence[Job[Value]]) -> Iterator[tuple[Job[Value], Value | Died]]:
        """Each job with its result as it ends; nothing is started where there are none.

        Raises:
            MachineError: no cluster answers, or a worker has other versions.
            EdgeproofError: what a task raised.
        """
        if jobs:
            with _connected(self.address):
                yield from _ended(jobs)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    _require_listener(address)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    with tempfile.TemporaryDirectory(prefix="edgeproof-product-") as scratch, _own_termination():
        archive = pack(Path(scratch) / "edgeproof.zip")
        for left in reversed(range(STARTS)):
            try:
                # What workers print would come out on this command's stdout, where --json promises JSON.
                ray.init(
                    address=address or None,
                    runtime_env={"working_dir": str(archive)},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=False,
                )
                break
            except Exception as error:  # Ray raises a bare Exception where its own processes did not come up in time
                ray.shutdown()
                if left and type(error) is Exception:
                    log.warning("Ray did not start (%s); trying again", _first_line(error))
                    continue
                raise MachineError(
                    f"no Ray cluster could be joined at {address or 'its default address'}",
                    f"one of Ray {ray.__version__} and this Python; Ray says: {_first_line(error)}",
                    "start one with `ray start --head`, or correct the address after --ray",
                ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise MachineError at once where nothing listens; Ray tries for minutes, saying the same again and again."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # words of Ray's own: auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"no Ray cluster could be joined at {address}",
            f"something that listens there within {SECONDS} s; the system says: {error}",
            "start one with `ray start --head`, or correct the address after --ray",
        ) from error


@contextmanager
def _own_termination() -> Iterator[None]:
    """SIGTERM means afterwards what it meant before: ``ray.init`` takes it for itself."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _ended(jobs: Sequence[Job[Value]]) -> Iterator[tuple[Job[Value], Value | Died]]:
    import ray

    work, product = ray.remote(carry_out), here()
    pending: dict[Any, Job[Value]] = {}
    try:
        for job in jobs:
            asked = work.options(name=job.name, max_retries=RETRIES, **_resources(job))
            pending[asked.remote(product, Path.cwd(), job.task, job.given)] = job
        while pending:
            (ended,), _ = ray.wait(list(pending), num_returns=1)
            yield pending.pop(ended), _result(ended)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _result(reference: Any) -> Any:
    """What a worker gave back, or why there is nothing."""
    import ray

    try:
        answer = ray.get(reference)
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise MachineError(
            "a machine of the cluster could not unpack edgeproof",
            f"room for it on every one; Ray says: {_first_line(error)}",
            "look at that machine's disk and Ray's logs, and run the same command again",
        ) from error
    except ray.exceptions.RayTaskError:
        raise  # what the task itself raised, as it would have here
    except ray.exceptions.RayError as error:
        return Died(f"{type(error).__name__} at each of {RETRIES + 1} tries: {_first_line(error)}")
    if isinstance(answer, EdgeproofError):
        raise answer
    return answer


def _resources(job: Job[Any]) -> dict[str, float]:
    """What Ray keeps free for a job: a processor, a GPU if the cluster has any, and no more memory than a machine has."""
    import ray

    asked: dict[str, float] = {"num_cpus": 1}
    if job.gpu and ray.cluster_resources().get("GPU"):
        asked["num_gpus"] = 1
    if job.gigabytes:
        largest = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
        asked["memory"] = int(min(job.gigabytes * GIGABYTE, largest))
    return asked


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
