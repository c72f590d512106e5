"""Stages that are compiled beside their graphs: the files of their libraries, and what the manifest says of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.compilation.apart import Job, call_together
from export.compilation.host import host_place
from runtime_py.backends.processor import VARIANTS
from runtime_py.errors import MachineError


@dataclass(frozen=True)
class CompiledFiles:
    """The libraries of one stage, one for each kind of processor that is like this machine's, and their index.

    Attributes:
        stem: of their names.
        known: keys of `VARIANTS` that kernels are written for.
        compiler: ``module:function`` of (what describes the stage, variant, library), which returns the index.
    """

    stem: str
    known: Sequence[str]
    compiler: str

    def variants(self) -> list[str]:
        """Those of this machine's architecture; others have no linker here."""
        return [name for name in self.known if VARIANTS[name][0] == host_place()]

    def library(self, folder: str, variant: str) -> Path:
        """Path of a library in the package."""
        return Path(folder) / f"{self.stem}_{variant}.so"

    def index(self, folder: str) -> Path:
        """Path of what the libraries are called with."""
        return Path(folder) / f"{self.stem}.json"

    def write(
        self, package: Path, folder: str, described: Sequence[Any], progress: Callable[[int, int], None]
    ) -> list[Path]:
        """Compile a stage; paths in the package.

        Args:
            described: the compiler's first arguments.

        Raises:
            UnsupportedModelError: something of the stage is not translated.
            MachineError: the compiler died, or there is no linker.
        """
        files = {variant: self.library(folder, variant) for variant in self.variants()}
        jobs = {name: Job(self.compiler, (*described, name, package / file)) for name, file in files.items()}
        # in turn: each compiler takes half a gigabyte (`export.backends.onnx.prediction.COMPILER`)
        told = [call_together({variant: job})[variant] for variant, job in jobs.items()]
        assert all(each == told[0] for each in told), "every variant takes the same"
        (package / self.index(folder)).write_text(json.dumps(told[0], indent=1) + "\n", encoding="utf-8")
        progress(1, 1)
        return [*files.values(), self.index(folder)]

    def block(self, folder: str) -> dict[str, Any]:
        """What the manifest says of them."""
        return {
            "libraries": {variant: self.library(folder, variant).as_posix() for variant in self.variants()},
            "index": self.index(folder).as_posix(),
            "tvm": importlib.metadata.version("apache-tvm"),
        }


def require_compiler(flag: str) -> None:
    """Raise MachineError unless TVM is installed."""
    if importlib.util.find_spec("tvm") is None:
        raise MachineError("apache-tvm is not installed", f"it for {flag}", "pip install 'edgeproof[mlc]'")
