"""In every family an answer stops where its checkpoint says, whichever file and form says it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.source.hub import DEMO_FOLDER
from parity_tests.conftest import GOLDENS
from parity_tests.golden.case import question, read_case
from parity_tests.reference.checkpoint_side import Checkpoint, open_checkpoint, reference
from runtime_py import tokenizer
from runtime_py.generation.generate import Choosing, Finish, settings_of
from runtime_py.generation.sampler import Sampling
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Message

DEMOS = ("awaker2.5-vl", "cogvlm2", "minicpm-v", "omnilmm-12b", "wemm", "xverse-v")
RANDOM = ("minicpm-llama3-v", "qwen2-vl")
"""Goldens of families without a trained checkpoint."""

PICTURE = DEMO_FOLDER.parent / "samples" / "shapes.png"
STATED = {
    "awaker2.5-vl": ("config.json", ()),
    "cogvlm2": ("config.json", ()),
    "minicpm-v": ("config.json", ()),
    "omnilmm-12b": ("config.json", ()),
    "wemm": ("config.json", ("text_config",)),
    "xverse-v": ("xverse-llm/generation_config.json", ()),
}
"""Where each demo says what ends an answer."""


def change(folder: Path, file: str, path: tuple[str, ...], eos: Any) -> Any:
    """Put another ``eos_token_id`` there; returns the one that stood there."""
    document = json.loads((folder / file).read_text())
    table = document
    for key in path:
        table = table[key]
    before, table["eos_token_id"] = table.get("eos_token_id"), eos
    (folder / file).write_text(json.dumps(document))
    return before


def answer(checkpoint: Checkpoint) -> Choosing:
    """The greedy answer to a question about the sample picture, at the checkpoint's own settings."""
    processor = checkpoint.processor(tokenizer.load(checkpoint.folder))
    session = Session(reference(checkpoint.spec, checkpoint.weights), processor, Limits(512, 512))
    images, features = session.encode_images([np.asarray(Image.open(PICTURE).convert("RGB"))])
    ids = processor.encode([Message("user", "What color is the circle?", (0,))], images)
    return generated(session, processor.layout(ids, images), features, checkpoint.spec.generation)


def generated(session: Session, layout: Any, features: Any, settings: Mapping[str, Any]) -> Choosing:
    """An answer chosen token by token on the reference; the engine's own loop is tested in runtime_py/engine."""
    logits = session.prefill(session.merge(layout, features), layout, "last")
    choosing = Choosing(replace(settings_of({**settings, "max_new_tokens": 48}), sampling=Sampling()))
    while (token := choosing.choose(logits[0, -1])) is not None:
        choosing.check_limits(session.room)
        if choosing.finish is not None:
            break
        logits = session.step(token)
    return choosing


@pytest.mark.parametrize("name", DEMOS)
def test_a_list_of_ends_stops_a_trained_answer(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO_FOLDER / name, tmp_path / name))
    expected = answer(open_checkpoint(folder))
    before = change(folder, *STATED[name], eos=None)
    change(folder, *STATED[name], eos=[before, 7])
    checkpoint = open_checkpoint(folder)
    said = answer(checkpoint)
    assert {before, 7} <= set(checkpoint.spec.generation["stop_ids"])
    assert (said.finish, said.ids) == (Finish.STOP, expected.ids)
    assert expected.ids


@pytest.mark.parametrize("name", [*DEMOS, *RANDOM])
def test_an_end_of_generation_config_stops_too(name: str, tmp_path: Path) -> None:
    """The first token of the answer, named as a further end there, leaves an empty answer."""
    random = name in RANDOM
    folder = Path(shutil.copytree((GOLDENS if random else DEMO_FOLDER) / name, tmp_path / name))
    place = folder / "xverse-llm" if name == "xverse-v" else folder
    before = open_checkpoint(folder)
    first = first_token(before) if random else answer(before).ids[0]
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [first]}))
    after = open_checkpoint(folder)
    assert set(after.spec.generation["stop_ids"]) >= {*before.spec.generation["stop_ids"], first}
    said = golden_answer(after) if random else answer(after)
    assert (said.finish, said.ids) == (Finish.STOP, [])


def golden_answer(checkpoint: Checkpoint) -> Choosing:
    """The greedy answer to a golden's first prompt."""
    case, processor = read_case(checkpoint.folder), checkpoint.processor()
    asked = question(case, case.prefixes[0], processor)
    session = Session(reference(checkpoint.spec, checkpoint.weights), processor, Limits(512, 512))
    images, features = session.encode_images(asked.pictures)
    return generated(session, processor.layout(asked.input_ids, images), features, checkpoint.spec.generation)


def first_token(checkpoint: Checkpoint) -> int:
    return golden_answer(checkpoint).ids[0]
