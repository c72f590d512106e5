"""The matrix on a real Ray: a worker killed in between, the run repeated, and the report that one process makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'edgeproof[cluster]'")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CELLS = ("--families", "minicpm-llama3-v", "--targets", "cpu,desktop-gpu", "--precisions", "fp32")
"""One that takes its time, and one that is not built, which shows at once."""
NOWHERE = "127.0.0.1:1"

KILLED = """\
import signal, sys, os
from export.cluster.jobs import Job
from export.cluster.ray_executor import RayExecutor
jobs = [Job("killed", signal.raise_signal, signal.SIGKILL), Job("whole", os.path.basename, "a/b")]
print({job.name: str(result) for job, result in RayExecutor(sys.argv[1])(jobs)})
"""

CROWDED = """\
import time
from export.cluster.jobs import Job
from export.cluster.ray_executor import RayExecutor
print([str(result) for _, result in RayExecutor("local")([Job("long", time.sleep, 3600)])])
"""

SLOW = """\
import os, sys, time
command, mark = " ".join(sys.orig_argv), os.environ["SLOW_ONCE"]
if "dashboard/agent.py" in command and not os.path.exists(mark):
    open(mark, "w").close()
    time.sleep(60)
"""
"""A sitecustomize.py, with which the first of Ray's helpers needs longer to start than Ray waits for it."""

QUICK = """\
import os
from export.cluster.jobs import Job
from export.cluster.ray_executor import RayExecutor
print([str(result) for _, result in RayExecutor("local")([Job("quick", os.path.basename, "a/b")])])
"""

OTHER_VERSIONS = """\
import dataclasses, os, sys
from export.cluster import product, ray_executor
from export.cluster.jobs import Job
mine = product.here()
ray_executor.here = lambda: dataclasses.replace(mine, libraries={**mine.libraries, "numpy": "0.1"})
list(ray_executor.RayExecutor(sys.argv[1])([Job("refused", os.path.basename, "a/b")]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two processors."""
    # What others take of a shared machine, memory and processors, is not what is tested.
    os.environ |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def matrix(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    reports = ("--json-file", str(folder / "matrix.json"), "--markdown", str(folder / "matrix.md"))
    return python("-m", "parity_tests", "--matrix", *CELLS, *reports, *arguments)


def kill_worker_of(job: str, run: subprocess.Popen[str]) -> None:
    """SIGKILL the worker of this test's Ray that is on a job of this name, two seconds into it."""
    deadline = time.monotonic() + 200
    while True:
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith("ray::") and job in process.cmdline()[0]:
                    time.sleep(2)
                    process.kill()
                    return
        time.sleep(0.5)


def report(folder: Path) -> list[dict[str, Any]]:
    """The cells without their times."""
    cells = json.loads((folder / "matrix.json").read_text())["cells"]
    return [{key: value for key, value in cell.items() if key != "seconds"} for cell in cells]


def test_a_killed_worker_costs_a_retry_and_the_report_is_the_local_one(cluster: str, tmp_path: Path) -> None:
    there, again, local = (tmp_path / name for name in ("there", "again", "local"))
    results = ("--results", str(tmp_path / "results"))
    run = matrix(there, "--ray", cluster, *results)
    kill_worker_of("cpu.fp32", run)
    said, errors = run.communicate()
    assert run.returncode == 0, (said, errors)
    kept = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert kept == [f"matrix.minicpm-llama3-v.minicpm-llama3-v.{target}.fp32.json" for target in ("cpu", "desktop-gpu")]

    run = matrix(again, "--ray", NOWHERE, *results)
    assert (run.communicate(), run.returncode)[1] == 0, "every cell is kept, so no cluster is needed"
    run = matrix(local)
    assert (run.communicate(), run.returncode)[1] == 0
    assert report(there) == report(again) == report(local)
    assert len({(folder / "matrix.md").read_text() for folder in (there, again, local)}) == 1


def test_a_job_whose_worker_always_dies_says_why_and_the_others_end(cluster: str) -> None:
    run = python("-c", KILLED, cluster)
    said, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "'whole': 'b'" in said
    assert "WorkerCrashedError at each of 3 tries: The worker died unexpectedly" in said


def test_a_job_without_memory_is_not_tried_for_ever() -> None:
    """A Ray of its own, for which everything is too much memory; the job would sleep for longer than is waited for it.

    Three workers come up, each of which imports Ray and the product: 24 s on two free processors, 217 s beside six programs
    that take all they get.
    """
    crowded = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    command = [sys.executable, "-c", CROWDED]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | crowded, capture_output=True, text=True, check=False, timeout=3000
    )
    assert "OutOfMemoryError at each of 3 tries: " in done.stdout, (done.stdout, done.stderr)


def test_a_ray_that_did_not_start_in_time_is_started_again(tmp_path: Path) -> None:
    """What a busy machine does to Ray's own helpers, done to one of them."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    slow = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "SLOW_ONCE": str(tmp_path / "mark")}
    command = [sys.executable, "-c", QUICK]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | slow, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "['b']", (done.stdout, done.stderr)
    assert "trying again" in done.stderr


def test_a_worker_with_other_libraries_is_refused(cluster: str) -> None:
    run = python("-c", OTHER_VERSIONS, cluster)
    _, errors = run.communicate()
    assert run.returncode == 1
    assert "MachineError" in errors
    assert "numpy 0.1, found" in errors


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = matrix(tmp_path, "--ray", NOWHERE, "--results", str(tmp_path / "results"))
    _, errors = run.communicate()
    assert (run.returncode, f"no Ray cluster could be joined at {NOWHERE}" in errors) == (7, True), errors
