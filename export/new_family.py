"""``edgeproof new-family NAME --like OTHER``: the files of a new family, begun as a working copy of another one.

The copy has a name, a checkpoint and a recognition of its own, and builds what the other builds; what differs is then
changed file by file, as docs/adding_a_family.md describes. With ``--outside`` the family is a distribution of its own, which
edgeproof finds by its entry points once it is installed.
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from export.command.python_text import renamed, sorted_imports, used_imports
from export.families.base import Family
from export.families.names import find
from export.families.published import variants
from export.families.registry import GROUP, families
from runtime_py.errors import MachineError, UsageError
from runtime_py.hub.reference import repository
from runtime_py.preprocess.processors import GROUP as PROCESSORS

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"[a-z][a-z0-9]*([.-][a-z0-9]+)*")


@dataclass(frozen=True)
class NewFamily:
    """What is asked for.

    Attributes:
        name: registry name, e.g. ``my-vlm``.
        like: the family to begin from.
        hub_id: the published checkpoint.
        outside: the modules stand in a package of their own.

    Raises:
        UsageError: a name that is none, or one that is taken; no form of a repository of the model hub.
    """

    name: str
    like: Family
    hub_id: str
    outside: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name of a family", "small letters and digits, with - or . between", "rename it"
            )
        if keyword.iskeyword(self.module):
            raise UsageError(
                f"{self.name!r} is a word of Python, which no module can be called", "another name", "rename it"
            )
        repository(self.hub_id)
        if find(self.name) or self.module in {module_of(family) for family in families().values()}:
            raise UsageError(f"there is a family {self.name} already", "a name of its own", "choose another name")

    @property
    def module(self) -> str:
        """The name as that of a module."""
        return self.name.replace("-", "_").replace(".", "_")

    @property
    def package(self) -> str:
        """Where its modules are imported from."""
        return self.module if self.outside else f"export.families.{self.module}"

    @property
    def class_name(self) -> str:
        return "".join(word.capitalize() for word in re.split(r"[-.]", self.name))


def module_of(family: Family) -> str:
    """The folder of a family's modules."""
    return type(family).__module__.split(".")[-2]


def new_files(new: NewFamily) -> dict[str, str]:
    """Path to text of every file of the scaffold, relative to the checkout or to the distribution's folder."""
    copied = _copied(new)
    if new.outside:
        where = {f"{new.module}/{name}": text for name, text in copied.items()}
        where[f"{new.module}/processor.py"] = _processor(new)
        where[f"{new.module}/family_test.py"] = _test(new)
        return where | {"pyproject.toml": _project(new), "README.md": _page(new)}
    where = {f"export/families/{new.module}/{name}": text for name, text in copied.items()}
    where[f"export/families/{new.module}/family_test.py"] = _test(new)
    where[f"runtime_py/preprocess/{new.module}.py"] = _processor(new)
    return where | {f"docs/families/{new.name}.md": _page(new)}


def write(new: NewFamily, root: Path) -> list[Path]:
    """Write the scaffold under ``root``; returns its files.

    Raises:
        UsageError: one of them is there already; none is written then.
        MachineError: ``root`` cannot be written.
    """
    files = {root / name: text for name, text in new_files(new).items()}
    there = sorted(str(path) for path in files if path.exists())
    if there:
        raise UsageError(f"{there[0]} is there already", "no file of the new family", "remove it, or choose another name")
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"cannot write {root}: {error.strerror}", "a folder that can be written", "choose another"
        ) from error
    return sorted(files)


def _copied(new: NewFamily) -> dict[str, str]:
    """The other family's modules and published.toml, renamed."""
    module = sys.modules[type(new.like).__module__]
    assert module.__file__ is not None
    folder = Path(module.__file__).parent
    theirs = type(new.like).__module__.rpartition(".")[0]
    files = {}
    for path in sorted(folder.glob("*.py")):
        if not path.name.endswith("_test.py"):
            text = re.sub(rf"\b{re.escape(theirs)}\b", new.package, path.read_text(encoding="utf-8"))
            files[path.name] = sorted_imports(text)
    files["family.py"] = _family(files["family.py"], new)
    files["published.toml"] = _published((folder / "published.toml").read_text(encoding="utf-8"), new)
    return files


def _family(text: str, new: NewFamily) -> str:
    """family.py with a class of its own; how it is recognised, published.toml says."""
    tree = ast.parse(text)
    record = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == type(new.like).__name__)
    edits: list[tuple[ast.stmt, str]] = []
    for node in record.body:
        if isinstance(node, ast.FunctionDef) and node.name == "recognises":
            edits.append((node, ""))
        if isinstance(node, ast.Expr):
            edits.append((node, f'    """{new.name}, begun as a copy of {new.like.name}."""'))
    lines = text.splitlines()
    for node, replacement in sorted(edits, key=lambda edit: -edit[0].lineno):
        blank = 0 if replacement else 1  # the empty line behind a method goes with it
        lines[node.lineno - 1 : (node.end_lineno or 0) + blank] = replacement.splitlines()
    made = used_imports(renamed("\n".join(lines) + "\n", record.name, new.class_name))
    return made.replace('"""', f'"""{new.name}, begun as a copy of {new.like.name}.\n\nOf that one this says:\n\n', 1)


def _published(text: str, new: NewFamily) -> str:
    """published.toml with a name, one checkpoint, and a ``model_type`` to recognise."""
    first = next(iter(variants(new.like.published_table()).values()))
    family = (
        f'[family]\nname = "{new.name}"\nprocessor = "{new.module}"\nrecognised_by = {{ model_type = "{new.name}" }}\n'
        'licence = "not stated yet"\n\n'
    )
    text = re.sub(r"(?ms)^\[family\]\n.*?(?=^\[|\Z)", lambda _: family, text, count=1)
    text = text.replace(f'repo_id = "{new.like.hub_ids[0]}"', f'repo_id = "{new.hub_id}"')
    text = re.sub(r"(?ms)^\[checkpoints\]\n.*?(?=^\[|\Z)", f'[checkpoints]\n"{new.hub_id}" = "{first}"\n\n', text, count=1)
    text = re.sub(r"(?ms)^\[quantised\]\n.*?(?=^\[|\Z)", "", text, count=1)
    common = re.search(r"(?ms)^\[common\]\n.*?(?=^\[|\Z)", text)
    if common is None:
        return f'{text.rstrip()}\n\n[common]\nmodel_type = "{new.name}"\n'
    kept = re.sub(r"(?m)^model_type = .*\n", "", common.group())
    stated = kept.replace("[common]\n", f'[common]\nmodel_type = "{new.name}"\n', 1)
    return text[: common.start()] + stated + text[common.end() :]


def _processor(new: NewFamily) -> str:
    theirs = f"runtime_py.preprocess.{new.like.processor}"
    return f'''"""{new.name}'s preprocessing, begun as {new.like.name}'s."""

from __future__ import annotations

from runtime_py.preprocess import {new.like.processor}


class Processor({new.like.processor}.Processor):
    """{new.name}'s pictures and prompt; ``settings`` are what {new.package} declares.

    What the published code does otherwise goes here. What nothing else needs is copied over from
    {theirs}.
    """
'''


def _test(new: NewFamily) -> str:
    return f'''"""{new.name} is recognised, and its rules and modules agree at both sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from {new.package}.family import FAMILY
from export.families.registry import recognise
from export.modules.build import parameter_shapes
from export.source.tensor_source import EmptySource


def test_the_published_config_is_recognised(tmp_path: Path) -> None:
    for name, value in FAMILY.config_files(FAMILY.published_config("", "full")).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    assert recognise(tmp_path).name == FAMILY.name


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_rules_and_modules_agree(size: str) -> None:
    spec = FAMILY.spec(FAMILY.published_config("", size), EmptySource())
    rules = FAMILY.weight_map(spec, EmptySource()).rules
    assert {{name: rule.shape for name, rule in rules.items()}} == parameter_shapes(spec)
'''


def _project(new: NewFamily) -> str:
    return f'''[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "edgeproof-{new.name.replace(".", "-")}"
version = "0.1.0"
description = "{new.name} for edgeproof"
requires-python = ">=3.11"
dependencies = ["edgeproof"]

[project.entry-points."{GROUP}"]
{new.module} = "{new.package}.family:FAMILY"

[project.entry-points."{PROCESSORS}"]
{new.module} = "{new.package}.processor"

[tool.setuptools.packages.find]
include = ["{new.module}*"]

[tool.setuptools.package-data]
"*" = ["*.toml"]
'''


def _page(new: NewFamily) -> str:
    return f"""# {new.name}

| checkpoint | tensors | parameters |
|---|---|---|
| `{new.hub_id}` | count them | count them |

| part | shape |
|---|---|
| vision encoder | |
| connector | |
| decoder | |
| picture | |
| prompt | |
| stop | |

**Licence.** Not stated yet.

**Verified** by: nothing yet; begun as a copy of {new.like.name}. **Inferred**: everything.
"""


if __name__ == "__main__":
    from export.command.scaffold import main

    sys.exit(main())
