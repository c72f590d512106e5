"""What a wheel may hold and what it must hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PACKAGES = ("export", "calibrate", "targets", "runtime_py", "parity_tests")
DEMOS = "export/demo/checkpoints"
REGISTRATION = "optimum/commands/register/register_edgeproof.py"
"""Where optimum looks for commands of other distributions."""

PAGES = "runtime_py/docs"
"""Where runtime_py/command/pages.py looks for the pages that messages name."""

MOST_BYTES = 16 << 20
"""Six demo checkpoints take 12 MB; a wheel beyond this carries something that is no product."""

_NO_PRODUCT = re.compile(
    r"(^|/)(test_[^/]*\.py|[^/]*_test\.py|conftest\.py)$|^parity_tests/(end_to_end|goldens|laboratory)/"
)


def faults(wheel: Path, repository: Path) -> Iterator[str]:
    """What is wrong with a wheel's contents, one sentence each.

    Args:
        repository: the checkout it was built from.
    """
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    yield from (f"{name} is no product" for name in sizes if _NO_PRODUCT.search(name))
    yield from (f"{name} lies outside the five packages" for name in sizes if not _known(name))
    for path in sorted((repository / DEMOS).rglob("*")):
        name = path.relative_to(repository).as_posix()
        if path.is_file() and sizes.get(name) != path.stat().st_size:
            yield f"{name} of the demos is missing or cut"
    for path in sorted((repository / "docs").rglob("*.md")):
        if f"{PAGES}/{path.relative_to(repository / 'docs').as_posix()}" not in sizes:
            yield f"the page {path.relative_to(repository).as_posix()} is missing"
    if REGISTRATION not in sizes:
        yield f"{REGISTRATION} is missing"
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in sizes):
        yield "the licence's text is missing"
    if wheel.stat().st_size > MOST_BYTES:
        yield f"{wheel.stat().st_size:,} bytes are more than {MOST_BYTES:,}"


def _known(name: str) -> bool:
    top = PurePosixPath(name).parts[0]
    return top in PACKAGES or top.endswith(".dist-info") or name == REGISTRATION
