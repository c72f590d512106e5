"""What a card says of manifests that no demo has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from export.publish.card import base_model, card
from export.publish.licence import HubLicence, hub_licence
from export.publish.parity_table import table
from runtime_py.generation.session import Limits
from runtime_py.package import Package, PackagedFile


def package(source: Mapping[str, object], licence: Mapping[str, object], **more: object) -> Package:
    tools = {"transformers.js": ["position_ids have 3 axes"], "onnxruntime-genai": []}
    blocks = {"onnx": {"kept_from_tools_by": tools}}
    manifest = {"source": source, "licence": licence, "backends": blocks, "edgeproof": "0.1.0", **more}
    return Package(
        Path("nowhere"),
        manifest,
        family="qwen2-vl",
        variant="2B",
        target="cpu",
        precision="int4",
        runtime_backend="ort",
        processor="qwen2_vl",
        runtime={},
        generation={},
        limits=Limits(2048, 512),
        contracts={},
        files=(PackagedFile("onnx/decoder.onnx", 10, "0" * 64),),
        fingerprint="ab" * 32,
    )


APACHE = {"name": "Apache-2.0", "files": ["LICENSE"]}


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ({"id": "openbmb/MiniCPM-V-2", "revision": None}, "openbmb/MiniCPM-V-2"),
        ({"id": "you/fine-tune", "revision": "abc"}, "you/fine-tune"),
        ({"id": "my-folder", "revision": None}, None),
        ({"id": "demo/minicpm-v", "revision": None}, None),
    ],
)
def test_the_base_model_is_a_repository_or_nothing(source: dict[str, object], base: str | None) -> None:
    made = package(source, APACHE)
    assert base_model(made) == base
    facts = yaml.safe_load(card(made, "you/x").split("---\n")[1])
    assert (facts.get("base_model"), facts.get("base_model_relation")) == (base, "quantized" if base else None)
    whole = yaml.safe_load(card(replace(made, precision="fp16"), "you/x").split("---\n")[1])
    assert "base_model_relation" not in whole, "nothing was quantised"
    assert facts["license"] == "apache-2.0" and "license_name" not in facts


def test_what_was_not_run_or_waived_is_said() -> None:
    verification = {"verdict": "not run", "not_run": [["task accuracy", "no questions"]]}
    waivers = [{"name": "skip-verify", "meaning": "not compared"}]
    text = card(package({"id": "x", "revision": None}, APACHE, verification=verification, waivers=waivers), "you/x")
    assert (
        "verdict is `not run`" in text and "- task accuracy: no questions" in text and "- skip-verify: not compared" in text
    )
    assert "onnxruntime_genai.Model('model')" in text and "hf download you/x" in text
    assert "transformers.js cannot hold this model: position_ids have 3 axes." in text


def test_licences_in_the_hub_s_words() -> None:
    assert hub_licence("MIT", "wemm", [], None) == HubLicence("mit")
    parts = hub_licence("Apache-2.0 (code); General Model License (weights)", "MiniCPM V", ["LICENSE"], None)
    assert parts == HubLicence("other", "minicpm-v-model-license", "LICENSE")
    assert hub_licence("not stated", "x", [], "a/b").link == "https://huggingface.co/a/b"
    assert hub_licence("not stated", "x", [], None).link is None


def test_a_table_shows_the_worst_of_all_questions() -> None:
    def probe(question: str, name: str, **metrics: float) -> dict[str, object]:
        return {"comparison": "loss", "question": question, "name": name, "verdict": "pass", "metrics": metrics}

    rows = list(
        table(
            [
                probe("a", "vision", relative_max=0.001, worst_row_cosine=0.99),
                probe("b", "vision", relative_max=0.02, worst_row_cosine=0.98) | {"verdict": "fail"},
                probe("a", "greedy_ids", agreement=0.5),
            ]
        )
    )
    assert rows[2:] == [
        "| loss | `vision` | fail, pass | 0.02 | 0.980000 |  |",
        "| loss | `greedy_ids` | pass |  |  | 50.0 % |",
    ]
