"""Results of finished jobs, one JSON file each, which a later run of the same job takes in place of doing it again."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from export.cluster.jobs import Job
from export.cluster.product import Product, here
from export.package import disk
from export.package.journal import write_json
from runtime_py.errors import UsageError

log = logging.getLogger("edgeproof")

Value = TypeVar("Value")

SCHEMA = 1


@dataclass(frozen=True)
class Form(Generic[Value]):
    """How results are written down.

    Attributes:
        settled: whether doing the job again could give nothing else; results that are not are written down by nobody.
    """

    to_json: Callable[[Value], Any]
    from_json: Callable[[Any], Value]
    settled: Callable[[Value], bool]


class Results(Generic[Value]):
    """A folder of results. Several runs may use it at a time: a file appears whole or not at all.

    Raises:
        UsageError: on construction, where the folder's name is that of a file.
    """

    def __init__(self, folder: Path, form: Form[Value], product: Product | None = None) -> None:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--results {folder} is a file", "a folder, or a name that is free", "choose another name")
        self.folder, self.form, self.product = folder, form, product or here()

    def read(self, job: Job[Value]) -> Value | None:
        """The result of this job, or None where there is none of the same task, input, product and libraries."""
        try:
            stored = json.loads(self._path(job).read_text(encoding="utf-8"))
            if stored["schema"] != SCHEMA or stored["key"] != self.key(job):
                return None
            return self.form.from_json(stored["result"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); the job is done again", self._path(job), type(error).__name__)
            return None

    def keep(self, job: Job[Value], value: Value) -> None:
        """Write a result down if it is settled.

        Raises:
            MachineError: the folder cannot be written.
        """
        if not self.form.settled(value):
            return
        with disk.explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # A name of its own: another run may be writing the same result into the same folder.
            aside = self.folder / f"{job.name}.{uuid.uuid4().hex}.partial"
            write_json(aside, {"schema": SCHEMA, "key": self.key(job), "result": self.form.to_json(value)})
            aside.replace(self._path(job))

    def key(self, job: Job[Value]) -> str:
        """SHA-256 of everything that decides the result."""
        task = f"{job.task.__module__}.{job.task.__qualname__}"
        decides = [task, asdict(job.given), job.beside, asdict(self.product)]
        return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()

    def _path(self, job: Job[Value]) -> Path:
        return self.folder / f"{job.name}.json"
