"""What an export puts beside a package's graphs and weights, written once more from the checkpoint and the manifest.

These files and entries of the manifest follow from the model and from choices that the manifest holds. The rest does not:
graphs, libraries and engines, whose check is that they say what the reference says, and weights, which are compared
elsewhere; what was found out while they were made, as the names of values that leave blocks; ``tools`` and hashes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.backends.base import Build, BuildOptions, ExportBackend
from export.backends.registry import backends
from export.checkpoint.opened import OpenedCheckpoint
from export.package.manifest import SERVED_UPRIGHT, assignments_of, copy_side_files
from export.package.selftest import write_question
from export.package.tokenizer_files import JSON, write_tokenizer_config
from export.prompts.chat_template import write_chat_template
from export.prompts.declared import declared_prompt
from export.stages import contracts
from targets.base import Limits
from targets.registry import target_named

Manifest = Mapping[str, Any]


def write_again(manifest: Manifest, checkpoint: OpenedCheckpoint, package: Path, folder: Path) -> tuple[list[Path], bool]:
    """Write the files into an empty ``folder``.

    Args:
        package: its ``tokenizer.json``, which is compared with the checkpoint's elsewhere, is what configurations of
            phones are worked out from.

    Returns:
        their paths in the folder, which are those in the package; whether that is all of them, which it is not where a
        backend cannot tell its own.
    """
    assert checkpoint.folder is not None
    tokens, target = checkpoint.tokenizer_folder(), target_named(manifest["target"])
    written, whole = copy_side_files(checkpoint.kept_files(), checkpoint.folder, folder), True
    if tokens is not None and (package / JSON).is_file():
        shutil.copyfile(package / JSON, folder / JSON)
        written += write_tokenizer_config(tokens, folder)
    for name, backend, build in _builds(manifest, checkpoint, folder):
        own = backend.written_again(build, manifest["backends"][name], package)
        if own is None:
            whole = False
            continue
        write = backends()[name].target_files.get(target.name)
        written += [*own, *(write(build) if write else [])]
    written += [*write_chat_template(declared_prompt(checkpoint.spec), folder), *write_question(folder)]
    return list(dict.fromkeys(written)), whole and set(manifest["backends"]) <= set(backends())


def stated_again(manifest: Manifest, checkpoint: OpenedCheckpoint) -> dict[str, Any]:
    """Entries of the manifest by its keys, as JSON; of a backend's block those that the model and the limits decide."""
    spec, target = checkpoint.spec, target_named(manifest["target"])
    entries = {
        "runtime_backend": target.runs.runtime_name,
        "processor": checkpoint.family.processor,
        "runtime": spec.runtime,
        "pictures": {"upright": SERVED_UPRIGHT},
        "contracts": {stage: contract.to_json() for stage, contract in contracts(spec).items()},
        "backends": {
            name: backend.stated_again(build, manifest["backends"][name])
            for name, backend, build in _builds(manifest, checkpoint, Path())
        },
        "licence": {"name": checkpoint.family.licence},
        "facts": spec.facts,
    }
    as_written: dict[str, Any] = json.loads(json.dumps(entries))
    return as_written


def _builds(manifest: Manifest, checkpoint: OpenedCheckpoint, folder: Path) -> Iterator[tuple[str, ExportBackend, Build]]:
    """What the backends of a package build from, but for choices that only files and assignments show."""
    from export.quantisation.codes import RoundToNearest
    from export.quantisation.grids import GRIDS

    assert checkpoint.weights is not None
    limits, spec = manifest["limits"], checkpoint.spec
    limits = Limits(limits["context"], limits["prefill_chunk"], limits.get("batch", 1))
    options = BuildOptions(target_named(manifest["target"]), manifest["precision"], limits)
    for name, block in manifest["backends"].items():
        if name not in backends():
            continue
        assignments = assignments_of(spec, block.get("assignments", manifest["assignments"]))
        build = Build(
            spec=spec,
            options=options,
            assignments=assignments,
            weights=checkpoint.weights,
            codes=RoundToNearest(checkpoint.weights, assignments, GRIDS),
            checkpoint=checkpoint,
            folder=folder,
            progress=lambda *_: None,
            processor=checkpoint.family.make_processor(spec),
        )
        yield name, backends()[name].exporter(), build
