"""The border to Ray, as far as it needs no Ray; parity_tests/end_to_end/matrix_ray_test.py has the rest."""

from __future__ import annotations

import socket
import sys

import pytest

from export.cluster.jobs import Job
from export.cluster.ray_executor import RayExecutor
from runtime_py.errors import MachineError


def test_nothing_is_started_for_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(RayExecutor("nowhere:1")([])) == []


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_at_which_nothing_listens_is_named(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(port=server.getsockname()[1])
        with pytest.raises(ModuleNotFoundError):  # something listens, so Ray would be asked
            list(RayExecutor(address)([Job("len", len, "abc")]))
    with pytest.raises(MachineError, match=f"joined at {address}"):
        list(RayExecutor(address)([Job("len", len, "abc")]))
