"""The decoder libraries of a package: for which processors, their files, what the manifest says of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.backends.onnx.choices import OnnxChoices
from export.compilation.apart import Job, call_together
from export.compilation.host import host_place
from export.specs import ModelSpec
from runtime_py.backends.decoder_library import VARIANTS
from runtime_py.errors import MachineError, UnsupportedModelError, UsageError

FLAG = "--decoder-library"
EIGHT_BITS = 4
"""The accuracy level of layers that round their inputs as the kernels do."""

STEM = "decoder_library"
COMPILER = "export.backends.onnx.decoder_library.library:compile_decoder"


def variants() -> list[str]:
    """Those of this machine's architecture; others have no linker here."""
    return [name for name, (machine, _) in VARIANTS.items() if machine == host_place()]


def library_file(folder: str, variant: str) -> Path:
    """Path of a library in the package."""
    return Path(folder) / f"{STEM}_{variant}.so"


def index_file(folder: str) -> Path:
    """Path of what the libraries are called with."""
    return Path(folder) / f"{STEM}.json"


def refuse(spec: ModelSpec, chosen: OnnxChoices) -> None:
    """Raise before any work where no library can be made.

    Raises:
        UnsupportedModelError: the decoder does not take every token alike.
        UsageError: its layers have zero points, or do not round their inputs.
        MachineError: TVM is not installed.
    """
    if spec.decoder.adapter is not None:
        raise UnsupportedModelError(
            f"no decoder library of {spec.family}: its tokens go through different adapters or experts",
            "a decoder that takes every token alike",
            f"leave {FLAG} out",
        )
    if not chosen.symmetric or chosen.accuracy_level != EIGHT_BITS:
        raise UsageError(
            f"{FLAG} with zero points of their own for blocks, or inputs that are not rounded",
            "symmetric blocks and the default accuracy",
            "leave --asymmetric and --preset mixed out, or this flag",
        )
    if importlib.util.find_spec("tvm") is None:
        raise MachineError("apache-tvm is not installed", f"it for {FLAG}", "pip install 'edgeproof[mlc]'")


def write_libraries(package: Path, graph: Path, folder: str, progress: Callable[[int, int], None]) -> list[Path]:
    """Compile ``graph``, which lies in the package; paths in the package.

    Raises:
        UnsupportedModelError: an operator of the graph is not translated.
        MachineError: the compiler died, or there is no linker.
    """
    files = {variant: library_file(folder, variant) for variant in variants()}
    jobs = {variant: Job(COMPILER, (package / graph, variant, package / file)) for variant, file in files.items()}
    # in turn: each compiler takes half a gigabyte (`export.backends.onnx.prediction.COMPILER`)
    told = [call_together({variant: job})[variant] for variant, job in jobs.items()]
    assert all(each == told[0] for each in told), "every variant takes the same"
    index = index_file(folder)
    (package / index).write_text(json.dumps(told[0], indent=1) + "\n", encoding="utf-8")
    progress(1, 1)
    return [*files.values(), index]


def library_block(folder: str) -> dict[str, Any]:
    """What the manifest says of them."""
    return {
        "libraries": {variant: library_file(folder, variant).as_posix() for variant in variants()},
        "index": index_file(folder).as_posix(),
        "tvm": importlib.metadata.version("apache-tvm"),
    }
