"""Processors by name: the modules of this folder, and those of other distributions.

A manifest names its processor. A name is a module of this folder, or an entry point of an installed distribution in the
group ``edgeproof.processors``; nothing else that a manifest says is ever imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from runtime_py.errors import PackageError
from runtime_py.preprocess.base import Processor, TokenizerLike

GROUP = "edgeproof.processors"
"""Entry points of other distributions: ``name = package.module``, a module with a class ``Processor``."""

_HERE = Path(__file__).parent


def make_processor(name: str, settings: Mapping[str, Any], tokenizer: TokenizerLike | None) -> Processor:
    """The processor of this name with a family's settings.

    Args:
        settings: the manifest's ``runtime`` object.

    Raises:
        PackageError: there is no such processor.
    """
    module: Any = None
    if name.isidentifier() and (_HERE / f"{name}.py").is_file():
        module = importlib.import_module(f"runtime_py.preprocess.{name}")
    else:
        point = next(iter(entry_points(group=GROUP, name=name)), None)
        module = None if point is None else point.load()
    if not hasattr(module, "Processor") or module.Processor is Processor:
        raise PackageError(
            f"manifest.json names the processor '{name}'",
            f"a module of runtime_py/preprocess, or an entry point in the group {GROUP}",
            "update edgeproof, or install the distribution that brings this family",
        )
    made: Processor = module.Processor(_Stated(settings), tokenizer)
    return made


class _Stated(dict[str, Any]):
    """A manifest's settings: what a processor asks for and they leave out is the package's fault."""

    def __missing__(self, key: str) -> Any:
        raise PackageError(
            f"manifest.json has no runtime.{key}", "every setting of the processor it names", "export the package again"
        )
