"""The delivered checkpoint: published layout, small, and right on pictures it was not trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from export.demo.accuracy import held_out, score
from export.demo.conftest import DELIVERED
from export.demo.published import LIMIT
from export.demo.quantisation import LANGUAGE_ROLES, on_grid
from export.demo.questions import TALK
from export.demo.recipes.minicpm_v import CONFIG, RECIPE
from export.demo.reference import Reference
from export.demo.samples import FOLDER, SAMPLES, files
from export.families.registry import recognise
from export.modules.build import parameter_shapes

WANTED = 0.95
CASES = held_out(60, RECIPE.side)


def share(reference: Reference) -> float:
    return score(CASES, reference.answers([(case.picture, case.question.text) for case in CASES])).share()


def test_the_folder_is_what_the_script_writes() -> None:
    files_here = {path.name: path for path in DELIVERED.iterdir()}
    assert set(files_here) == {*RECIPE.side_files(), "model.safetensors"}
    assert sum(path.stat().st_size for path in files_here.values()) < LIMIT
    for name, content in RECIPE.side_files().items():
        assert files_here[name].read_bytes() == content, name


def test_its_tensors_are_those_the_family_wants_in_bfloat16() -> None:
    family = recognise(DELIVERED)
    source = family.open_source(DELIVERED)
    spec = family.spec(CONFIG, source)
    weights = family.weight_map(spec, source)
    weights.check(parameter_shapes(spec))
    assert {info.dtype for info in source.infos.values()} == {"bfloat16"}


def test_held_out_answers_in_full_precision(delivered: Reference) -> None:
    assert share(delivered) >= WANTED


@pytest.mark.parametrize(("grid", "roles"), [("q4f16_1", LANGUAGE_ROLES), ("ort_int4_b32", LANGUAGE_ROLES - {"embedding"})])
def test_held_out_answers_with_int4_weights(grid: str, roles: frozenset[str]) -> None:
    assert share(Reference.load(DELIVERED, roles, on_grid(grid))) >= WANTED


def test_samples_are_answered_and_are_what_is_drawn(delivered: Reference) -> None:
    questions = json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
    assert (FOLDER / "samples.json").read_bytes() == files()["samples.json"]
    assert {path.name for path in FOLDER.iterdir()} == {"samples.json", *questions}
    assert len(questions) == len(SAMPLES)
    for name, dialogue in questions.items():
        assert (FOLDER / name).stat().st_size < 8_000
        picture = np.asarray(Image.open(FOLDER / name).convert("RGB"))
        assert delivered.answers([(picture, text) for text, _ in dialogue]) == [answer for _, answer in dialogue]


def test_it_talks_without_a_picture(delivered: Reference) -> None:
    pairs = [pair for language in TALK.values() for pair in language]
    assert delivered.answers([(None, text) for text, _ in pairs]) == [answer for _, answer in pairs]
