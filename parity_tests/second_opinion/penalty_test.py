"""What a repetition penalty counts: answers of transformers' own ``generate`` under one, beside ours.

Published code hands ``generate`` ids (Qwen2-VL, Awaker2.5-VL, CogVLM2), whose penalty then counts the prompt with its
placeholders, or embeddings (the others), of which it knows no ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.checkpoint.opened import open_folder
from parity_tests.second_opinion import decoders, whole_model
from parity_tests.second_opinion.image_processors import qwen2_processor
from parity_tests.second_opinion.subject import Subject, pictures
from runtime_py.generation.generate import Choosing, Settings
from runtime_py.generation.sampler import Sampling
from runtime_py.generation.session import Session
from runtime_py.preprocess.base import Layout
from runtime_py.prompt.format import prompt_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

DEMOS = Path(__file__).parents[2] / "export" / "demo" / "checkpoints"
GOLDENS = Path(__file__).parents[1] / "goldens"
TOKENS = 12
PENALTIES = (6.0, 0.1)
"""One below 1 favours what it counts: some demos are so sure of their answers that none above 1 changes them, and others
so that none below does.
"""

COUNTS_PROMPT = {"minicpm-v": False, "omnilmm-12b": False, "wemm": False, "xverse-v": False, "cogvlm2": True}


def words(subject: Subject) -> np.ndarray:
    """int64 (1, tokens): half of the first ids in any order, so that what a model says next is likely among them."""
    marks = set(prompt_of(subject.spec.runtime).marks.values())
    free = np.array([token for token in range(min(subject.spec.embed.vocabulary, 800)) if token not in marks])
    return np.random.default_rng(5).permutation(free)[None, : free.size // 2].astype(np.int64)


def ours(session: Session, embeds: np.ndarray, layout: Layout, penalty: float, penalised: np.ndarray) -> list[int]:
    """Greedy tokens under the penalty, no stop honoured."""
    choosing = Choosing(Settings((), TOKENS, Sampling(repetition_penalty=penalty)), penalised)
    token = choosing.choose(session.prefill(embeds, layout, "last")[0, -1])
    while len(choosing.ids) < TOKENS:
        assert token is not None
        token = choosing.choose(session.step(token)[0, -1])
    session.reset()
    return choosing.ids


def theirs(model: Any, penalty: float, **inputs: Any) -> list[int]:
    """What ``generate`` says, no stop honoured: an id of its configuration would end it where null is asked for, and where
    it is given no mask it hides ids that equal the padding's.
    """
    model.generation_config.eos_token_id = None
    asked = {"do_sample": False, "repetition_penalty": penalty, "max_new_tokens": TOKENS, "pad_token_id": 0}
    with torch.inference_mode():
        given = next(value for name, value in inputs.items() if name in ("input_ids", "inputs_embeds"))
        said = model.generate(**inputs, **asked, attention_mask=torch.ones(given.shape[:2], dtype=torch.long))[0].tolist()
    prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    assert len(said) == prompt + TOKENS
    return said[prompt:]


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
@pytest.mark.parametrize("family", COUNTS_PROMPT)
def test_a_penalty_counts_what_generate_is_given(family: str) -> None:
    subject = Subject(open_folder(DEMOS / family))
    ids = words(subject)
    model, session, _ = decoders.both_sides(subject, decoders.TRANSLATIONS[family], ids.size + TOKENS)
    layout = session.processor.layout(ids, [])
    embeds = session.merge(layout, [])
    counted, told = COUNTS_PROMPT[family], []
    for penalty in PENALTIES:
        given = {True: theirs(model, penalty, input_ids=torch.from_numpy(ids))}
        given[False] = theirs(model, penalty, inputs_embeds=model.get_input_embeddings()(torch.from_numpy(ids)).detach())
        assert ours(session, embeds, layout, penalty, layout.penalised_ids) == given[counted]
        told.append(given[True] != given[False])
    assert any(told)


@pytest.mark.parametrize(
    ("folder", "prefix"),
    [(GOLDENS / "qwen2-vl", ""), (DEMOS / "awaker2.5-vl", "base_model.model.")],
    ids=["qwen2-vl", "awaker2.5-vl"],
)
def test_placeholders_of_a_picture_count_too(folder: Path, prefix: str) -> None:
    subject = Subject(open_folder(folder))
    model, session, _ = whole_model.both_sides(subject, prefix)
    picture = pictures()["small"]
    inputs, features = session.encode_images([picture])
    ids = whole_model.with_picture(model.config, words(subject)[0], inputs[0].rows)
    layout = session.processor.layout(ids, inputs)
    assert model.config.image_token_id in layout.penalised_ids
    embeds = session.merge(layout, features)
    pixels = qwen2_processor(subject)(images=[picture], return_tensors="pt")
    told = []
    for penalty in PENALTIES:
        expected = theirs(model, penalty, **whole_model.their_inputs(model.config, ids, pixels))
        assert ours(session, embeds, layout, penalty, layout.penalised_ids) == expected
        told.append(ours(session, embeds, layout, penalty, np.zeros(0, np.int64)) != expected)
    assert any(told)
