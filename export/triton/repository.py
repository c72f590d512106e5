"""Around a finished package: the model that Triton loads, then the files of the whole repository."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import runtime_py
from export.backends.registry import backend_named
from export.package.journal import write_bytes
from export.triton import deployment
from export.triton.configuration import config_text
from export.triton.layout import CONFIG, MODEL, PERF, RUNTIME, ModelFolder, models_in, of_package
from runtime_py.errors import UsageError
from runtime_py.package import MANIFEST, selftest
from runtime_py.triton.question import IMAGE, SAMPLING, STREAM, TEXT
from targets.base import Target

ENTRY = '''\
"""What Triton's Python backend loads; everything else is in runtime/, the code of the edgeproof that made the package."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True  # nothing is added to the repository
sys.path.insert(0, str(Path(__file__).resolve().parent / "runtime"))

import triton_python_backend_utils  # noqa: E402

from runtime_py.triton.model import TritonModel  # noqa: E402


class TritonPythonModel(TritonModel):
    def __init__(self):
        super().__init__(triton_python_backend_utils)
'''

PERF_TOKENS = 32
"""Of each answer that a load tool asks for, whatever the model would say: answers of equal length can be compared."""

NOT_CARRIED = ("*_test.py", "conftest.py", "__pycache__")


def write_model(package: Path, target: Target) -> Path:
    """Make a package, at its place in a repository, a model that Triton loads; returns the repository.

    config.pbtxt is written last: without it Triton takes the folder for no model.
    """
    assert target.server is not None
    model = of_package(package)
    write_bytes(model.version / MODEL, ENTRY.encode())
    _carry_runtime(model, [name for each in target.backend_names for name in backend_named(each).server_modules])
    write_bytes(model.folder / PERF, _perf_input(package).encode())
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    write_bytes(model.folder / CONFIG, config_text(target.server, manifest["limits"].get("batch", 1)).encode())
    write_repository(model.repository)
    return model.repository


def check_repository(repository: Path) -> None:
    """Refuse, before any work, a package, and a folder that holds no model of edgeproof's and a file that a repository has.

    Raises:
        UsageError: it is so; files that its manifest lacks would spoil the package, somebody else's would be overwritten.
    """
    if (repository / MANIFEST).exists():
        raise UsageError(
            f"-o {repository} holds {MANIFEST}, as a package does",
            "a new folder, or a model repository of edgeproof",
            "choose another -o",
        )
    if models_in(repository):
        return
    names = sorted(name for name in deployment.names() if (repository / name).exists())
    if names:
        raise UsageError(
            f"-o {repository} holds {names[0]}, which a model repository has too, and no model that was exported here",
            "a new folder, or a model repository of edgeproof",
            "choose another -o",
        )


def write_repository(repository: Path) -> None:
    """The files of the repository, from the models that are in it."""
    for name, text in deployment.files(models_in(repository)).items():
        write_bytes(repository / name, text.encode())


def _carry_runtime(model: ModelFolder, further: Sequence[str]) -> None:
    """A copy of the runtime, without its tests, in place of the one that was there; with it what builds on the server."""
    place = model.version / RUNTIME
    fresh = place.with_name(f"{RUNTIME}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    source = Path(runtime_py.__file__).parent
    shutil.copytree(source, fresh / source.name, ignore=shutil.ignore_patterns(*NOT_CARRIED), copy_function=shutil.copyfile)
    for name in further:
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, fresh / name)
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)


def _perf_input(package: Path) -> str:
    """The package's own sample as perf_analyzer reads it (triton-inference-server/perf_analyzer, docs/input_data.md)."""
    sample = selftest.read_sample(package)
    assert sample is not None
    picture = base64.b64encode(sample.image.read_bytes()).decode()
    row = {
        TEXT: {"content": [sample.prompt], "shape": [1]},
        IMAGE: {"content": [picture], "shape": [1]},
        SAMPLING: {"content": [json.dumps({"max_tokens": PERF_TOKENS, "temperature": 0, "ignore_eos": True})], "shape": [1]},
        STREAM: {"content": [True], "shape": [1]},
    }
    return json.dumps({"data": [row]}, ensure_ascii=False, indent=1) + "\n"
