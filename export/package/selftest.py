"""The self-test sample of a package: one picture and question, and the reference's answer once a check has run.

The question is the first of the parity check, so that the check's own recording gives the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.package.sample_questions import PROMPTS, drawn_pictures
from export.source.side_files import has_vocabulary
from runtime_py.package import selftest


def write_question(folder: Path) -> list[Path]:
    """Write picture and question below a package, without an answer; returns their paths in it."""
    _, chosen, text = PROMPTS[0]
    return selftest.write_sample(folder, drawn_pictures()[chosen[0]], text)


def write_answer(
    folder: Path, verification: Mapping[str, Any], stop_ids: Sequence[int], equal_tokens: Callable[[], int]
) -> list[Path]:
    """Add the reference's greedy answer that a passed check recorded, and how many of its tokens the package gives.

    Args:
        verification: the manifest's block of this name.
        stop_ids: tokens that end an answer.
        equal_tokens: runs the written sample through the package; how many leading tokens are the reference's.

    Returns:
        the paths of the sample when it was written again, else nothing.
    """
    name, chosen, text = PROMPTS[0]
    sample = verification.get("sample") or {}
    if verification["verdict"] != "pass" or sample.get("question") != name or not has_vocabulary(folder):
        return []
    expected = _until_stop(sample["greedy_ids"], stop_ids)
    if not expected:
        return []
    picture = drawn_pictures()[chosen[0]]
    selftest.write_sample(folder, picture, text, expected, agree=0)
    return selftest.write_sample(folder, picture, text, expected, agree=equal_tokens())


def _until_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The answer proper: what comes before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return [int(token) for token in tokens[:end]]
