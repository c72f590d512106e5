"""What every method sees of the real model: conversations of real text, as ours and as ids, and the decoder alone.

The text is the standard library's documentation, other modules of it than those that methods are compared on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from parity_tests.laboratory.real_model.material import docstrings, documentation
from parity_tests.laboratory.real_model.work import Work
from runtime_py.backends.records import ONNX

if TYPE_CHECKING:
    from calibrate.request import CalibrationRequest

OTHER_MODULES = (
    "abc", "asyncio", "asyncio.events", "asyncio.streams", "base64", "bdb", "binascii", "bisect", "bz2", "cProfile", "cgi",
    "cmd", "code", "codecs", "collections", "colorsys", "compileall", "concurrent.futures", "copy", "ctypes.util",
    "curses.textpad", "dataclasses", "dbm", "dis", "email.message", "email.policy", "filecmp", "fileinput", "fnmatch",
    "ftplib", "getopt", "getpass", "glob", "graphlib", "gzip", "hashlib", "hmac", "html", "html.parser", "http.client",
    "http.cookiejar", "http.server", "importlib.abc", "importlib.metadata", "io", "itertools", "linecache", "locale",
    "lzma", "multiprocessing.managers", "multiprocessing.pool", "netrc", "nntplib", "numbers", "operator", "os", "pdb",
    "pkgutil", "poplib", "profile", "pstats", "queue", "re", "reprlib", "sched", "secrets", "selectors", "shutil",
    "signal", "site", "socket", "ssl", "stat", "struct", "symtable", "sysconfig", "telnetlib", "tkinter", "tkinter.ttk",
    "types", "unittest.runner", "urllib.parse", "urllib.robotparser", "venv", "webbrowser",
    "wsgiref.util", "xmlrpc.client", "zipapp", "zipimport", "zoneinfo",
)  # fmt: skip
"""Of the standard library, none of those whose documentation methods are compared on; what every method sees."""

SAMPLES, LETTERS, LEAST = 64, 1000, 300
"""Conversations, characters of an answer at most, and characters of a text that is taken."""

SEEING = (
    "vision_config", "rope_scaling", "vision_start_token_id", "vision_end_token_id", "video_token_id", "image_token_id",
)  # fmt: skip
"""What config.json says of pictures."""


def conversations(work: Work) -> Path:
    """The folder of what every method sees: questions about the documentation of `OTHER_MODULES`, and it as answers."""
    folder = work.folder / "other_documentation"
    file = folder / "conversations.jsonl"
    if not file.is_file():
        told = _documented()
        random.Random(0).shuffle(told)
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for name, text in told[:SAMPLES]:
            asked = {"role": "user", "content": f"What does the documentation of {name} say?"}
            lines.append(json.dumps({"messages": [asked, {"role": "assistant", "content": text[:LETTERS]}]}))
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _documented() -> list[tuple[str, str]]:
    """Names and docstrings of the modules and what they define, none twice, none of the text that is compared on."""
    compared, told = set(documentation()), dict[str, str]()
    for name in OTHER_MODULES:
        try:
            own = docstrings(name)
        except ImportError:  # a Python built without it, or a later one
            continue
        for one, text in own:
            if len(text) > LEAST and text not in compared:
                told.setdefault(text, f"{name}.{one}".rstrip("."))
    return [(name, text) for text, name in told.items()]


def ids(work: Work) -> Path:
    """The same as ids, which other libraries are given: JSON, a list of rows."""
    from calibrate.samples.prompts import prompts_of
    from export.checkpoint.opened import open_checkpoint

    path = work.folder / "ids.json"
    if not path.is_file():
        asked = calibration(work)
        prompts = prompts_of(asked, open_checkpoint(asked.export()))[1]
        rows = [[int(token) for token in prompt.layout.input_ids[0]] for prompt in prompts]
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def calibration(work: Work) -> CalibrationRequest:
    """A calibration of the model's cpu package on the conversations."""
    from calibrate.request import CalibrationRequest

    return CalibrationRequest(
        "qwen2-vl", "cpu", "gptq", work.folder / "unused", str(work.checkpoint), samples=SAMPLES, data=conversations(work),
        held_out=0, backend=ONNX.name,
    )  # fmt: skip


def language_model(work: Work) -> Path:
    """The decoder alone, as transformers reads it."""
    folder = work.folder / "language_model"
    if not (folder / "config.json").is_file():
        from safetensors.numpy import load_file, save_file

        tensors = load_file(work.checkpoint / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if name.startswith("model.") and not name.endswith(".bias")}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
            (folder / name).write_bytes((work.checkpoint / name).read_bytes())
        config = json.loads((work.checkpoint / "config.json").read_text(encoding="utf-8"))
        plain = {name: value for name, value in config.items() if name not in SEEING}
        whole = {**plain, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return folder
