"""Build the engines of a package on the machine that will run them.

    python -m export.backends.tensorrt.on_the_server PACKAGE

Runs inside the server's container, with its own TensorRT and without PyTorch: the package holds the graphs, and the code
here is the builder that every export uses. Where engines of TensorRT for RTX are there that serve this GPU, nothing is
done; those of TensorRT do not say which GPU they serve, and are built again. Finished engines and their entries in
manifest.json are written once all of them are built.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.backends.tensorrt.engine_run import build_source
from export.backends.tensorrt.flavour import RTX_COMPUTE_CAPABILITIES, Flavour, load_flavour
from runtime_py.backends.cuda_driver import CudaDriver
from runtime_py.backends.records import TENSORRT
from runtime_py.backends.trt_device import MODULES
from runtime_py.contracts import STAGES
from runtime_py.errors import EdgeproofError, PackageError

FOLDER, SOURCES, BLOCK = "tensorrt", "sources", "block.json"
SHARED = ("flavour", "version", "compute_capabilities", "timing_cache", "deterministic")
NEWEST_RTX = 12


def served(capability: str, covered: tuple[str, ...] = RTX_COMPUTE_CAPABILITIES) -> bool:
    """Whether engines of TensorRT for RTX run on a GPU of this compute capability."""
    return capability in covered or int(capability.partition(".")[0]) >= NEWEST_RTX


def flavour_for(capability: str) -> Flavour:
    """TensorRT for RTX where its engines serve the GPU, else TensorRT.

    Raises:
        MachineError: it is not installed.
    """
    plain, rtx = MODULES
    return load_flavour(rtx if served(capability) else plain)


def build_engines(package: Path, capability: str, flavour: Flavour, say: Callable[[str], None]) -> bool:
    """Build every engine of a package for a GPU; False where those that are there serve it already.

    Raises:
        PackageError: the package holds no sources.
        EdgeproofError: an engine could not be built; the package is as it was.
    """
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    here = TENSORRT.block(manifest)
    same = here.get("flavour") == flavour.name and here.get("version") == flavour.version
    if same and here["compute_capabilities"] and served(capability):
        return False
    sources = package / FOLDER / SOURCES
    if not (sources / BLOCK).is_file():
        raise PackageError(f"{package} holds no graphs for engines", f"{FOLDER}/{SOURCES}", "export it for server-gpu")
    records: dict[str, dict[str, Any]] = {}
    fresh = {stage: package / FOLDER / f"{stage}.engine.new" for stage in STAGES}
    try:
        for stage in STAGES:
            say(f"building {stage} with {flavour.name} {flavour.version} for compute capability {capability}")
            records[stage] = build_source(sources / f"{stage}.json", fresh[stage], flavour)
    finally:
        if len(records) < len(STAGES):
            for engine in fresh.values():
                engine.unlink(missing_ok=True)
    for stage, record in records.items():
        fresh[stage].replace(package / FOLDER / f"{stage}.engine")
        (package / FOLDER / f"{stage}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    block = json.loads((sources / BLOCK).read_text(encoding="utf-8"))
    manifest["backends"][TENSORRT.name] = with_engines(block, records)
    names = [f"{FOLDER}/{stage}{end}" for stage in STAGES for end in (".engine", ".json")]
    rows = {row["path"]: row for row in manifest["files"]} | {name: _row(package, name) for name in names}
    manifest["files"] = [rows[name] for name in sorted(rows)]
    manifest["tools"][flavour.name] = flavour.version
    partial = path.with_name("manifest.json.partial")
    partial.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return True


def with_engines(block: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The backend's block of the manifest, once every stage has an engine."""
    first = records[STAGES[0]]
    stages = {
        stage: {"file": f"{FOLDER}/{stage}.engine", "profiles": record["profiles"]} for stage, record in records.items()
    }
    return {**{key: first[key] for key in SHARED}, **block, "stages": stages}


def _row(package: Path, name: str) -> dict[str, Any]:
    with (package / name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": name, "bytes": (package / name).stat().st_size, "sha256": digest}


def main(arguments: list[str]) -> int:
    """Build for the first GPU of this machine; returns the exit code."""

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    try:
        capability = CudaDriver(0).device.compute_capability
        done = build_engines(Path(arguments[0]), capability, flavour_for(capability), say)
    except EdgeproofError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    say(f"{arguments[0]}: engines built" if done else f"{arguments[0]}: its engines serve this GPU")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
