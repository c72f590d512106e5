"""Faults of a reader, of which the package and its reference know nothing: transformers reads otherwise and says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint.opened import open_folder
from export.families.config import decoder as reader
from export.families.config.section import Section
from export.specs import Activation, ModelSpec, RopeSpec
from parity_tests.judging.judge import Verdict
from parity_tests.second_opinion import decoders, image_processors, towers, whole_model
from parity_tests.second_opinion.opinion import Opinion, Part
from parity_tests.second_opinion.subject import Subject
from runtime_py.preprocess import minicpm_llama3_v, minicpm_v, omnilmm_12b, pixels

pytest.importorskip("transformers")

HERE = Path(__file__).parents[1] / "goldens"
DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"
FOLDERS = {path.name: path for path in (*HERE.iterdir(), *DEMOS.iterdir()) if path.is_dir()}

DECODERS: dict[str, tuple[Part, str, str]] = {
    "minicpm-v": (decoders.PART, "config.json", ""),
    "minicpm-llama3-v": (decoders.PART, "config.json", ""),
    "omnilmm-12b": (decoders.PART, "config.json", ""),
    "wemm": (decoders.PART, "config.json", "text_config"),
    "xverse-v": (decoders.PART, "xverse-llm/config.json", ""),
    "qwen2-vl": (whole_model.PART, "config.json", "text_config"),
    "awaker2.5-vl": (whole_model.PART, "config.json", ""),
}
"""Family to the part that its decoder is asked in, and the file and key where its configuration stands."""


def changed(folder: Path, source: Path, file: str, key: str, values: dict[str, Any]) -> Path:
    """A copy of a checkpoint with other values in a JSON file."""
    shutil.copytree(source, folder)
    document = json.loads((folder / file).read_text(encoding="utf-8"))
    part = document[key] if key else document
    part.update(values)
    if "rope_parameters" in part:  # the layout of transformers 5
        part["rope_parameters"]["rope_theta"] = part.pop("rope_theta")
    (folder / file).write_text(json.dumps(document), encoding="utf-8")
    return folder


def worst(part: Part, subject: Subject) -> Opinion:
    """The first failure, or else the largest error; that something was compared is made sure of."""
    said = part.ask(subject)
    assert all(opinion.verdict is not Verdict.NOT_RUN for opinion in said), said
    failed = [opinion for opinion in said if opinion.verdict is Verdict.FAIL]
    return failed[0] if failed else max(said, key=lambda opinion: opinion.error)


@pytest.mark.parametrize("family", DECODERS)
def test_a_rotary_base_and_an_eps_that_are_read_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    part, file, key = DECODERS[family]
    folder = changed(tmp_path / family, FOLDERS[family], file, key, {"rope_theta": 1e6, "rms_norm_eps": 1e-5})
    honest = worst(part, Subject(open_folder(folder)))
    assert honest.verdict is Verdict.PASS and honest.error < 5e-6, honest
    with monkeypatch.context() as patched:
        rope_of = reader.rope_of
        patched.setattr(reader, "rope_of", lambda *given: replace(rope_of(*given), theta=1e4))
        opened = open_folder(folder)
        assert opened.spec.decoder.rope.theta == 1e4
        fault = worst(part, Subject(opened))
        assert fault.verdict is Verdict.FAIL and fault.error > 1e-3, fault
    with monkeypatch.context() as patched:
        number = Section.number
        patched.setattr(
            Section, "number", lambda self, key, *given: 1e-6 if key == "rms_norm_eps" else number(self, key, *given)
        )
        opened = open_folder(folder)
        assert opened.spec.decoder.norm_eps == 1e-6
        fault = worst(part, Subject(opened))
        assert fault.verdict is Verdict.FAIL, fault


def broken(family: str, change: Callable[[ModelSpec], ModelSpec]) -> Subject:
    """A checkpoint of which our reader says something else."""
    opened = open_folder(FOLDERS[family])
    spec = change(opened.spec)
    assert spec != opened.spec
    return Subject(replace(opened, spec=spec))


def of_decoder(**values: Any) -> Callable[[ModelSpec], ModelSpec]:
    return lambda spec: replace(spec, decoder=replace(spec.decoder, **values))


def of_vision(**values: Any) -> Callable[[ModelSpec], ModelSpec]:
    return lambda spec: replace(spec, vision=replace(spec.vision, **values))


def of_runtime(**values: Any) -> Callable[[ModelSpec], ModelSpec]:
    return lambda spec: replace(spec, runtime={**spec.runtime, **values})


@pytest.mark.parametrize(
    ("part", "family", "change"),
    [
        pytest.param(decoders.PART, "minicpm-v", of_decoder(residual_scale=1.0), id="residual scale dropped"),
        pytest.param(decoders.PART, "minicpm-v", of_decoder(logit_divisor=1.0), id="logit divisor dropped"),
        pytest.param(
            decoders.PART, "minicpm-v", lambda s: replace(s, embed=replace(s.embed, scale=1.0)), id="embedding scale dropped"
        ),
        pytest.param(decoders.PART, "cogvlm2", of_decoder(norm_eps=1e-6), id="eps of CogVLM2"),
        pytest.param(
            decoders.PART, "minicpm-v", of_decoder(heads=2, kv_heads=2, head_dim=64, rope=RopeSpec(1e4, 64)), id="heads"
        ),
        pytest.param(towers.PART, "wemm", of_vision(activation=Activation.GELU), id="exact GELU for tanh GELU"),
        pytest.param(towers.PART, "xverse-v", of_vision(activation=Activation.GELU), id="exact GELU for quick GELU"),
        pytest.param(towers.PART, "minicpm-v", of_vision(heads=6), id="heads of the tower"),
        pytest.param(towers.PART, "minicpm-llama3-v", of_vision(norm_eps=1e-3), id="eps of the tower"),
        pytest.param(image_processors.PART, "minicpm-v", of_runtime(resample="bilinear"), id="kernel"),
        pytest.param(image_processors.PART, "minicpm-v-2", of_runtime(max_slices=3), id="number of slices"),
        pytest.param(image_processors.PART, "wemm", of_runtime(longest_edge=70), id="longest edge"),
        pytest.param(image_processors.PART, "qwen2-vl", of_runtime(mean=[0.5, 0.5, 0.5]), id="mean of Qwen2-VL"),
        pytest.param(image_processors.PART, "qwen2-vl", of_runtime(max_pixels=3136), id="most pixels"),
    ],
)
def test_a_value_that_is_read_wrongly(part: Part, family: str, change: Callable[[ModelSpec], ModelSpec]) -> None:
    fault = worst(part, broken(family, change))
    assert fault.verdict is Verdict.FAIL and fault.why, fault


@pytest.mark.parametrize(
    ("module", "name", "family"),
    [
        (minicpm_v, "HALF", "minicpm-v"),
        (minicpm_llama3_v, "HALF", "minicpm-llama3-v"),
        (omnilmm_12b, "CLIP_STD", "omnilmm-12b"),
    ],
)
def test_a_mean_or_deviation_that_is_another_models(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, family: str
) -> None:
    other = pixels.CLIP_MEAN if name == "HALF" else pixels.HALF
    monkeypatch.setattr(module, name, other)
    fault = worst(image_processors.PART, Subject(open_folder(FOLDERS[family])))
    assert fault.verdict is Verdict.FAIL and fault.metric == "max_abs" and fault.error > 0.01, fault
