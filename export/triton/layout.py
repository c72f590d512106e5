"""Where everything lies in a Triton model repository.

    REPOSITORY/README.md ...             of the whole repository: how to start, try, measure and scale it
    REPOSITORY/MODEL/config.pbtxt        what Triton knows of the model
    REPOSITORY/MODEL/1/model.py          what it loads
    REPOSITORY/MODEL/1/package/          the package, as any other target has one
    REPOSITORY/MODEL/1/runtime/          the code that answers with it, of the version that made it

Triton takes every folder of a repository for a model and leaves files alone; of a model's folder it reads config.pbtxt and
the folder of each version (triton-inference-server/server, docs/user_guide/model_repository.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime_py.triton import PACKAGE

VERSION, RUNTIME = "1", "runtime"
CONFIG, MODEL, PERF = "config.pbtxt", "model.py", "perf_input.json"


@dataclass(frozen=True)
class ModelFolder:
    """One model of a repository."""

    repository: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.repository / self.name

    @property
    def version(self) -> Path:
        return self.folder / VERSION

    @property
    def package(self) -> Path:
        return self.version / PACKAGE


def of_package(package: Path) -> ModelFolder:
    """The model that a package belongs to, by its place."""
    folder = package.parents[1]
    return ModelFolder(folder.parent, folder.name)


def models_in(repository: Path) -> list[ModelFolder]:
    """Every model of a repository that edgeproof wrote, by name."""
    packages = sorted(repository.glob(f"*/{VERSION}/{PACKAGE}/manifest.json"))
    return [of_package(path.parent) for path in packages]
