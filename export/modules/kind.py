"""A part of a model of a kind that a family may bring: its spec names the classes that build it, and no list has them.

They are named, not imported: a plan needs neither, and a family in a folder or a distribution of its own brings both.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from runtime_py.errors import UnsupportedModelError


class Kind:
    """The spec of such a part.

    Attributes:
        module: ``package.module:Class`` of the PyTorch module, called as ``Class(spec, kernels)``.
        block: the same of the Relax block of a kind that a family brings. "" for none: such a model has no MLC package.
    """

    module: ClassVar[str]
    block: ClassVar[str] = ""


def named_class(spec: Kind, reference: str) -> Any:
    """The class that ``package.module:Class`` names, one of a spec's.

    Raises:
        UnsupportedModelError: there is none.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{type(spec).__name__} names {reference!r}, which cannot be imported: {error}",
            "package.module:Class of what it is built by",
            f"correct it in {type(spec).__module__}; docs/adding_a_family.md says what it names",
        ) from error
