"""Preprocessing of real photographs against transformers, where an installed package carries some."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.checkpoint.opened import open_folder
from parity_tests.judging.judge import Verdict
from parity_tests.second_opinion.image_processors import PART
from parity_tests.second_opinion.subject import PHOTOGRAPH, Subject, real_pictures

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize("name", ["qwen2-vl", "wemm", "xverse-v", "cogvlm2", "minicpm-llama3-v", "minicpm-v-2"])
def test_photographs_become_the_pixels_that_transformers_makes(name: str) -> None:
    pytest.importorskip("transformers")
    taken = real_pictures()
    if not taken:
        pytest.skip("no installed package carries photographs: pip install scikit-learn, or scikit-image")
    said = [opinion for opinion in PART.ask(Subject(open_folder(GOLDENS / name))) if PHOTOGRAPH in opinion.what]
    assert len(said) >= len(taken)
    assert [opinion for opinion in said if opinion.verdict is not Verdict.PASS] == []
