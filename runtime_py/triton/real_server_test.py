"""The real tritonserver over a repository; not run where the variable EDGEPROOF_TRITON names no environment with one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.triton.deployment import SMOKE
from parity_tests.triton.process import VARIABLE, TritonEnvironment, TritonProcess, environment
from runtime_py.errors import MachineError
from runtime_py.triton.conftest import NAME

README = "README.md"

CANCELLING = """
import sys, time
from parity_tests.triton.client import GrpcStream
stream = GrpcStream(sys.argv[1], sys.argv[2])
asked = stream.ask("1", "Hello", [], {"max_tokens": 2000, "ignore_eos": True, "temperature": 0})
print(next(asked).request)
stream.close(cancel=True)
"""


@pytest.fixture(scope="module")
def here() -> TritonEnvironment:
    known = environment()
    if known is None:
        pytest.skip(f"not run: {VARIABLE} names no environment with nvidia-pytriton (parity_tests/triton/process.py)")
    return known


@pytest.fixture(scope="module")
def server(here: TritonEnvironment, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    process = TritonProcess(here, repository, tmp_path_factory.mktemp("server"))
    process.start()
    yield process
    assert process.stop() == 0


def test_the_smoke_client_is_content(here: TritonEnvironment, server: TritonProcess, repository: Path) -> None:
    http, grpc, _ = server.ports
    command = [str(here.python), str(repository / SMOKE), "127.0.0.1", str(http), str(grpc)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gRPC, streamed: 16 tokens" in done.stdout


def test_a_bad_request_is_refused_and_the_next_one_answered(server: TritonProcess) -> None:
    bad = json.dumps({"text_input": "a", "image": ["no base64!"]}).encode()
    status, said = server.ask("POST", f"/v2/models/{NAME}/generate", bad)
    assert status == 400 and "base64" in said
    good = json.dumps({"text_input": "Hello", "sampling_parameters": '{"max_tokens": 4, "ignore_eos": true}'}).encode()
    status, said = server.ask("POST", f"/v2/models/{NAME}/generate", good)
    assert status == 200 and len(json.loads(said)["token_ids"]) == 4


def test_a_parameter_is_obeyed_or_refused(server: TritonProcess) -> None:
    """As Triton's own `generate` hands over what is no input, in both forms that its users write."""
    for body in ({"max_tokens": 2, "ignore_eos": True}, {"parameters": {"max_tokens": 2, "ignore_eos": True}}):
        status, said = server.ask("POST", f"/v2/models/{NAME}/generate", json.dumps({"text_input": "Hello"} | body).encode())
        assert status == 200 and len(json.loads(said)["token_ids"]) == 2
    status, said = server.ask("POST", f"/v2/models/{NAME}/generate", b'{"text_input": "Hello", "max_token": 2}')
    assert status == 400 and "max_token: not expected here" in said


def test_a_client_that_leaves_takes_its_question_with_it(here: TritonEnvironment, server: TritonProcess) -> None:
    root = Path(__file__).parents[2]
    command = [str(here.python), "-c", CANCELLING, f"127.0.0.1:{server.ports[1]}", NAME]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=root)
    assert done.stdout.split() == ["1"], done.stderr
    assert counted(server, "edgeproof_requests", 'outcome="cancelled"') == 1


def counted(server: TritonProcess, name: str, label: str = "") -> float:
    lines = server.get("/metrics", 2)[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{") and label in line)


def test_the_metrics_port_has_the_models_counters(server: TritonProcess) -> None:
    assert counted(server, "edgeproof_generated_tokens") >= 4
    assert counted(server, "edgeproof_first_token_seconds_count") >= 1
    assert counted(server, "edgeproof_slots") == 8
    assert counted(server, "nv_inference_request_success") >= 1


def test_the_lines_of_the_readme_are_answered(server: TritonProcess, repository: Path, tmp_path: Path) -> None:
    shutil.copy(next((repository / NAME / "1/package/selftest").glob("image.*")), tmp_path / "photo.jpg")
    lines = [line for line in (repository / README).read_text(encoding="utf-8").splitlines() if "curl -s" in line]
    assert len(lines) == 3
    for line in lines:
        typed = line.strip().replace("localhost:8000", f"127.0.0.1:{server.ports[0]}")
        done = subprocess.run(["/bin/sh", "-c", typed], cwd=tmp_path, capture_output=True, text=True, check=True)
        answers = [json.loads(row.removeprefix("data: ")) for row in done.stdout.splitlines() if row]
        assert answers and all("text_output" in answer for answer in answers), done.stdout


def test_nothing_was_added_to_the_package(server: TritonProcess, repository: Path) -> None:
    from runtime_py.package import differences, read

    assert server.ready()
    assert differences(read(repository / NAME / "1" / "package")) == []


def test_numpy_2_is_refused_in_words(here: TritonEnvironment, repository: Path, tmp_path: Path) -> None:
    """This suite's own Python has NumPy 2; the server is started with it first in PATH."""
    import numpy as np

    if np.__version__.startswith("1."):
        pytest.skip("not run: NumPy 1 here")
    process = TritonProcess(here, repository, tmp_path, python=Path(sys.executable).parent)
    with pytest.raises(MachineError, match="built for NumPy 1, and Python brings NumPy 2"):
        process.start()
