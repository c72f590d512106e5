"""Of every test process: its own file of trusted packages, no reports, Ctrl-C as a terminal has it, and shared packages."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

FOLDER = tempfile.TemporaryDirectory(prefix="edgeproof-trust-")
"""Packages that tests export are trusted in it, never in the user's; removed when the interpreter ends."""

os.environ.setdefault("EDGEPROOF_TRUST", str(Path(FOLDER.name) / "trusted"))

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests load ONNX Runtime before anything of ours

# a shell starts what runs in the background with Ctrl-C ignored, and tests of it would wait for ever
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def library_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo's package with a decoder library, made once for all processes of a run; it must not be written to."""
    return _exported(tmp_path_factory, "decoder_library")


@pytest.fixture(scope="session")
def tower_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a vision library, of towers that have one on this machine."""
    from export.backends.onnx.vision_library.written import FILES

    if not FILES.variants():
        pytest.skip("no vision library is compiled on this machine")
    return _exported(tmp_path_factory, "vision_library")


def _exported(factory: pytest.TempPathFactory, option: str) -> Path:
    import fcntl

    from export.pipeline import export
    from export.request import ExportRequest

    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    package = shared / option
    with (shared / f"{option}.held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not package.exists():  # a package has its name when it is whole
            options = {option: True}
            request = ExportRequest("minicpm-v", "cpu", weights="demo", output=package, skip_verify=True, options=options)
            export(request, None)
    return package
