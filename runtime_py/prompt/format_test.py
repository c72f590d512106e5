"""A prompt read from the manifest is the one that was declared; anything else there is a broken package."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from export.families.registry import families
from export.source.tensor_source import EmptySource
from runtime_py.errors import PackageError
from runtime_py.files.schema import FOLDER
from runtime_py.prompt.format import PictureMarks, PromptFormat, prompt_of


@pytest.mark.parametrize("name", families())
def test_every_declared_prompt_survives_a_manifest(name: str) -> None:
    family = families()[name]
    for hub_id in family.hub_ids:
        runtime = family.spec(family.published_config(hub_id, "full"), EmptySource()).runtime
        stored = json.loads(json.dumps(runtime))
        assert stored == runtime
        form = prompt_of(stored)
        assert form.to_json() == runtime["prompt"]
        assert set(form.stop) <= set(form.marks)


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": None},
        {"roles": {"user": "U"}},
        {"order": "backwards"},
        {"picture": {"before": ""}},
        {"marks": {"<s>": "one"}},
        {"marks": [1]},
        {"system": {"before": "", "after": "", "middle": ""}},
        {"unheard_of": 1},
    ],
)
def test_another_form_is_a_broken_package(changes: dict[str, Any]) -> None:
    family = families()["omnilmm-12b"]
    value = family.spec(family.published_config("", "full"), EmptySource()).runtime["prompt"]
    with pytest.raises(PackageError, match="describes the prompt in another form"):
        PromptFormat.from_json({**value, **changes})


@pytest.mark.parametrize(("name", "kind"), [("prompt", PromptFormat), ("picture", PictureMarks)])
def test_the_schema_of_manifests_knows_every_field(name: str, kind: type[PromptFormat | PictureMarks]) -> None:
    """It lets no other through, so that a package of a model that uses a new one could not be finished."""
    stated = json.loads((FOLDER / "manifest.schema.json").read_text(encoding="utf-8"))["$defs"][name]
    assert set(stated["properties"]) == {field.name for field in dataclasses.fields(kind)}


def test_settings_without_a_prompt_are_named() -> None:
    with pytest.raises(PackageError, match="hold no prompt"):
        prompt_of({"queries": 64})
