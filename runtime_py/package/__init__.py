"""A package on disk: its manifest read and checked, its files, who trusts it, and what it says to its own sample."""

from runtime_py.package.reading import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Depth,
    Package,
    PackagedFile,
    differences,
    parse,
    read,
    verify,
)

__all__ = ["MANIFEST", "MAX_MANIFEST_BYTES", "Depth", "Package", "PackagedFile", "differences", "parse", "read", "verify"]
