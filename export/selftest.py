"""The self-test sample of a package: one picture and question, and the reference's answer once a check has run.

The question is the first of the parity check, so that the check's own recording gives the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.package import has_tokenizer
from runtime_py import selftest

if TYPE_CHECKING:
    from runtime_py.model import Model


def write_question(folder: Path) -> list[Path]:
    """Write picture and question below a package, without an answer; returns their paths in it."""
    from parity_tests.package_questions import PROMPTS, drawn_pictures

    _, chosen, text = PROMPTS[0]
    return selftest.write_sample(folder, drawn_pictures()[chosen[0]], text)


def write_answer(
    folder: Path, verification: Mapping[str, Any], stop_ids: Sequence[int], in_pieces: bool = False
) -> list[Path]:
    """Add the reference's greedy answer that a passed check recorded, and how many of its tokens the package gives.

    Args:
        verification: the manifest's block of this name.
        stop_ids: tokens that end an answer.
        in_pieces: never hold all the package's weights in memory.

    Returns:
        the paths of the sample when it was written again, else nothing.
    """
    from parity_tests.package_questions import PROMPTS, drawn_pictures

    name, chosen, text = PROMPTS[0]
    sample = verification.get("sample") or {}
    if verification["verdict"] != "pass" or sample.get("question") != name or not has_tokenizer(folder):
        return []
    expected = _until_stop(sample["greedy_ids"], stop_ids)
    if not expected:
        return []
    picture = drawn_pictures()[chosen[0]]
    selftest.write_sample(folder, picture, text, expected, agree=0)
    return selftest.write_sample(folder, picture, text, expected, agree=_equal_tokens(folder, in_pieces))


def _until_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The answer proper: what comes before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return [int(token) for token in tokens[:end]]


def _equal_tokens(folder: Path, in_pieces: bool) -> int:
    """How many leading tokens the package itself gives like the reference; 0 where it cannot run here."""
    from runtime_py.errors import MachineError

    sample = selftest.read_sample(folder)
    assert sample is not None
    try:
        with _opened(folder, in_pieces) as model:
            return selftest.run(model, sample).equal
    except MachineError:
        return 0


def _opened(folder: Path, in_pieces: bool) -> Model:
    from runtime_py.model import Model, load

    if not in_pieces:
        return load(folder, verify="off")
    from parity_tests.candidate import open_candidate
    from runtime_py import package, tokenizer

    candidate = open_candidate(folder, in_pieces=True)
    return Model(package.read(folder), candidate.backend, candidate.processor, tokenizer.load(folder))
