"""The question that a package brings: asked anew, its tokens compared, and refused where it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime_py.conftest import model_of
from runtime_py.errors import PackageError
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.package import selftest
from runtime_py.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path: Path, words: Tokenizer) -> Model:
    return model_of(words, tmp_path, Limits(160, 7), ["selftest/image.png", "selftest/sample.json"])


def test_selftest_compares_the_reference_tokens(model: Model, picture: np.ndarray) -> None:
    unlisted = replace(model.package, manifest={"files": []})
    paths = selftest.write_sample(model.package.folder, picture, "red?")
    assert [path.as_posix() for path in paths] == ["selftest/image.png", "selftest/sample.json"]
    sample = selftest.read_sample(model.package.folder)
    assert sample is not None
    outcome = selftest.run(model, sample)
    assert outcome.passed is None and len(outcome.ids) == 16
    selftest.write_sample(model.package.folder, picture, "red?", outcome.ids)
    with_sample, model.package = model.package, unlisted
    assert selftest.require(model) is None, "a sample that the manifest does not list is none"
    model.package = with_sample
    passed = selftest.require(model)
    assert passed is not None and passed.passed and passed.equal == 16
    wrong = [*outcome.ids[:5], (outcome.ids[5] + 1) % 200, *outcome.ids[6:]]
    selftest.write_sample(model.package.folder, picture, "red?", wrong, agree=5)
    assert selftest.require(model) is not None
    selftest.write_sample(model.package.folder, picture, "red?", wrong)
    with pytest.raises(PackageError, match="after 5 tokens"):
        selftest.require(model)


@pytest.mark.parametrize("content", ["{", '{"image": "../../x.png", "prompt": "a"}', '{"prompt": "a"}'])
def test_damaged_samples_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "selftest").mkdir()
    (tmp_path / "selftest" / "sample.json").write_text(content)
    with pytest.raises(PackageError, match=r"sample\.json"):
        selftest.read_sample(tmp_path)
