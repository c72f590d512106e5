"""The package's side of a comparison: a package opened through the runtime, ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.backends.examiner import Examiner
from parity_tests.backends.registry import OF_THE_REFERENCE, examiner_of, stand_in_for
from parity_tests.judging.standards import Standard
from runtime_py import package as packages
from runtime_py.backends.base import Backend, Releasing
from runtime_py.backends.record import Ability
from runtime_py.backends.registry import held_backends, runtime_backend
from runtime_py.errors import MachineError, PackageError
from runtime_py.generation.session import Limits, Session
from runtime_py.model import open_processor, open_tokenizer
from runtime_py.package import trust as trusting
from runtime_py.package.files import listed
from runtime_py.preprocess.base import Message, Processor, TokenizerLike


@dataclass(frozen=True)
class Candidate:
    """A package ready to be asked.

    Attributes:
        examiner: what is known about the backend that runs here.
        tokenizer: None when the package holds none.
        not_run: (what, why) for the parts of the package that this machine cannot run.
    """

    folder: Path
    manifest: Mapping[str, Any]
    examiner: Examiner
    backend: Backend
    processor: Processor
    tokenizer: TokenizerLike | None
    limits: Limits
    not_run: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Of the runtime backend, or of the reference in its place."""
        return self.backend.name

    @property
    def block(self) -> Mapping[str, Any]:
        """This backend's block of the manifest."""
        return self.examiner.block(self.manifest)

    def assignments(self) -> Mapping[str, Mapping[str, str]]:
        """What every quantisable layer became in the files that run here."""
        return self.block.get("assignments", self.manifest["assignments"])

    def with_processor(self, processor: Processor) -> Candidate:
        """The same package behind another processor, the checkpoint's."""
        return replace(self, processor=processor)

    def played_by(self, backend: Backend) -> Candidate:
        """The reference's backend in the package's place, so that both are asked by the same code; a prompt is one call."""
        limits = Limits(self.limits.context, self.limits.context)
        return replace(self, examiner=OF_THE_REFERENCE, backend=backend, tokenizer=None, limits=limits, not_run=())

    def exact(self) -> Candidate | None:
        """The same files and numbers computed in float32 throughout, so that nothing hides behind chosen roundings.

        None when there is no rounding to switch off.
        """
        return self.examiner.exact(self)

    def stores_roundings(self) -> bool:
        """Whether the files hold other numbers than the checkpoint, and this backend's roundings are known."""
        return self.examiner.stores_roundings(self)

    def float_standard(self) -> Standard:
        """How close a package without integers must be to the full-precision reference."""
        return self.examiner.float_standard(self)

    def implementation_standard(self) -> Standard:
        """How close a package with integers must be to the reference that holds the same integers."""
        return self.examiner.implementation_standard(self)

    def standard(self) -> Standard:
        """How close the package must be to the reference with its own numbers (`checkpoint_side.stored_reference`)."""
        from parity_tests.reference.checkpoint_side import is_quantised

        other = self.stores_roundings() or is_quantised(self.assignments())
        return self.implementation_standard() if other else self.float_standard()

    def release(self) -> None:
        """Give the memory back. A backend that cannot open its files again is closed."""
        if isinstance(self.backend, Releasing):
            self.backend.release()
        else:
            self.backend.close()


def open_candidate(
    folder: Path, backend: str | None = None, *, in_pieces: bool = False, trust: str | bool = False
) -> Candidate:
    """Open a package, finished or partial, without comparing its hashes; what runs is what is judged.

    When the package's own backend needs a device that is not here and other files of the package run without one, these do,
    and the package's own are listed as not run.

    Args:
        backend: a runtime name; None for the package's own.
        in_pieces: never hold all the package's weights in memory, where the backend can do without.
        trust: see `runtime_py.package.trust.require`.

    Raises:
        UsageError, PackageError, MachineError: from the runtime.
    """
    package = packages.read(folder)
    trusting.require(package, backend, trust)
    words = _tokenizer(package)
    record = runtime_backend(backend or package.runtime_backend)
    examiner = examiner_of(record)
    skipped: tuple[tuple[str, str], ...] = ()
    own_code = trusting.code_allowed(package, backend, trust)
    try:
        engine = _opened(examiner, package, in_pieces, own_code)
    except MachineError as error:
        other = None if backend is not None else stand_in_for(record, held_backends(package.manifest))
        if other is None:
            raise
        skipped = ((record.files, error.what),)
        examiner = examiner_of(other)
        engine = _opened(examiner, package, in_pieces, own_code)
    if backend is None:
        skipped += _beside(package, {record.name} | {examiner.record.name if examiner.record else record.name})
    processor = open_processor(package, words or _stand_in(package.manifest))  # type: ignore[arg-type]
    return Candidate(package.folder, package.manifest, examiner, engine, processor, words, package.limits, skipped)


def _beside(package: packages.Package, asked: set[str]) -> tuple[tuple[str, str], ...]:
    """Files for a device that lie beside those that are asked, such as a server's engines."""
    others = (each for each in held_backends(package.manifest) if each.name not in asked)
    return tuple(
        (each.files, f"--backend {each.runtime_name} asks them, on a machine with their device")
        for each in others
        if not each.can(Ability.WITHOUT_DEVICE)
    )


def _opened(examiner: Examiner, package: packages.Package, in_pieces: bool, own_code: bool) -> Backend:
    return examiner.open_in_pieces(package, own_code) if in_pieces else examiner.open(package, own_code)


def _tokenizer(package: packages.Package) -> TokenizerLike | None:
    if not {"tokenizer.model", "tokenizer.json"} & listed(package.manifest):
        return None
    return open_tokenizer(package)


def _stand_in(manifest: Mapping[str, Any]) -> TokenizerLike:
    from parity_tests.check.package_questions import stand_in

    return stand_in(manifest)


def greedy_answer(candidate: Candidate, picture: np.ndarray, text: str, steps: int = 48) -> str:
    """What a package says to a question about a picture, greedily, up to its first stop id.

    Raises:
        EdgeproofError: the package has no tokenizer, or the prompt does not fit.
    """
    if candidate.tokenizer is None:
        raise PackageError("the package holds no tokenizer", "one of the published forms", "export it with a tokenizer")
    session = Session(candidate.backend, candidate.processor, candidate.limits)
    images, features = session.encode_images([picture])
    layout = candidate.processor.layout(candidate.processor.encode([Message("user", text, (0,))], images), images)
    logits = session.prefill(session.merge(layout, features), layout, "last")
    stops = set(candidate.manifest["generation"]["stop_ids"])
    ids: list[int] = []
    while len(ids) < steps:
        token = int(np.argmax(logits[0, -1]))
        if token in stops or session.room < 1:
            break
        ids.append(token)
        logits = session.step(token)
    return candidate.tokenizer.decode(ids)
