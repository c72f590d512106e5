"""onnxruntime-genai over the package's own files, which the export lays out for it (docs/targets/onnx_tools.md)."""

from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np

from runtime_py import package
from runtime_py.peers.engine import Job, NotHereError, version
from runtime_py.peers.reads import of_package

DISTRIBUTION = "onnxruntime-genai"
CONFIG = "genai_config.json"


class Genai:
    """A generator over the package, opened from a folder of links with the number of threads written into its settings.

    Raises:
        NotHereError: it is not installed, or the package is not laid out for it.
    """

    def __init__(self, job: Job) -> None:
        self.version = version(DISTRIBUTION)
        if not (job.package / CONFIG).is_file():
            raise NotHereError(f"the package has no {CONFIG}")
        self.reads = of_package(package.read(job.package).manifest, job.shape)
        folder = job.scratch / "genai"
        folder.mkdir(exist_ok=True)
        for entry in job.package.iterdir():
            link = folder / entry.name
            if entry.name != CONFIG and not link.is_symlink():
                link.symlink_to(entry.resolve())
        settings = json.loads((job.package / CONFIG).read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = job.threads
        (folder / CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        self._genai: Any = importlib.import_module("onnxruntime_genai")
        self._model = self._genai.Model(str(folder))
        self._context = job.context
        self._ids = job.ids.astype(np.int32)
        self._generator: Any = None

    def fill(self, tokens: int) -> None:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self._context)
        self._generator = self._genai.Generator(self._model, params)
        given = self._genai.NamedTensors()
        given["input_ids"] = self._ids[None, :tokens]
        self._generator.set_inputs(given)
        self._generator.generate_next_token()

    def step(self, tokens: int) -> None:
        for _ in range(tokens):
            self._generator.generate_next_token()
