"""The package itself, by the pipeline that answers with it: embedding, decoder, logits."""

from __future__ import annotations

from runtime_py import package
from runtime_py.backends.choice import open_backend
from runtime_py.generation.limits import Limits
from runtime_py.generation.session import Session
from runtime_py.model import open_processor
from runtime_py.peers.engine import Job
from runtime_py.version import VERSION


class Own:
    """A session of the package; its tokenizer is not opened."""

    def __init__(self, job: Job) -> None:
        opened = package.read(job.package)
        self.version = VERSION
        backend = open_backend(opened, None, job.threads)
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
