"""The package itself, by the pipeline that answers with it: embedding, decoder, logits."""

from __future__ import annotations

import os

from runtime_py import package
from runtime_py.backends.choice import open_backend
from runtime_py.backends.record import Ability
from runtime_py.backends.registry import runtime_backend
from runtime_py.generation.limits import Limits
from runtime_py.generation.session import Session
from runtime_py.model import open_processor
from runtime_py.package import trust
from runtime_py.peers.engine import Job
from runtime_py.peers.reads import of_package
from runtime_py.version import VERSION


class Own:
    """A session of the package; its tokenizer is not opened.

    Raises:
        PackageError: it brings code without which it does not run, and nobody trusts it.
    """

    def __init__(self, job: Job) -> None:
        opened = package.read(job.package)
        self.version = VERSION
        self.reads = of_package(opened.manifest, job.shape)
        trust.require(opened, None, job.trust)
        allowed = trust.code_allowed(opened, None, job.trust)
        backend = open_backend(opened, None, _threads(opened, job.threads), own_code=allowed)
        chunk = min(job.chunk or opened.limits.prefill_chunk, opened.limits.prefill_chunk)
        self._session = Session(backend, open_processor(opened, None), Limits(job.context, chunk))
        self._ids = job.ids

    def fill(self, tokens: int) -> None:
        session = self._session
        layout = session.processor.layout(self._ids[None, :tokens], [])
        session.prefill(session.embed(layout.input_ids), layout)

    def step(self, tokens: int) -> None:
        for token in self._ids[:tokens]:
            self._session.step(int(token))


def _threads(opened: package.Package, threads: int) -> int:
    """What to open its backend with; one that takes no number reads it from the environment of this process."""
    record = runtime_backend(opened.runtime_backend)
    if record.can(Ability.THREADS) or not record.threads_variable:
        return threads
    os.environ[record.threads_variable] = str(threads)
    return 0
