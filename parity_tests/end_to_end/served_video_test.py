"""CogVLM2-Video from a checkpoint in its published layout to a server that is shown the frames of a clip."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runtime_py
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from parity_tests.laboratory.served import Served, served
from runtime_py.generation.generate import Overrides
from runtime_py.preprocess.base import Message
from runtime_py.serving.client import Client, user_message

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
SAME_IDS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
MARKS = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")
QUESTION, TOKENS, FRAMES = "What happens?", 12, 4


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random numbers in the video model's layout, and the demo's words."""
    demo, folder = ROOT / "export/demo/checkpoints/cogvlm2", tmp_path_factory.mktemp("video")
    config = json.loads((demo / "config.json").read_text(encoding="utf-8"))
    checkpoint, made = folder / "checkpoint", folder / "package"
    overrides = {key: config[key] for key in SAME_IDS} | {"added_tokens": dict(zip(MARKS, range(694, 697), strict=True))}
    synthesize(SynthesisRequest("cogvlm2", "tiny", checkpoint, variant="video-chat", overrides=overrides))
    for name in TOKENIZER:
        shutil.copy(demo / name, checkpoint / name)
    command = [sys.executable, "-m", "export", "--model", str(checkpoint), "--target", "cpu", "--precision", "fp32", "-q"]
    subprocess.run([*command, "-o", str(made)], cwd=ROOT, check=True)
    return made


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Served]:
    with served(package, ["--threads", "1"]) as made:
        yield made


def clip(seed: int) -> np.ndarray:
    """uint8 (frames, 60, 80, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, 60, 80, 3), dtype=np.uint8)


def alone(model: runtime_py.Model, frames: np.ndarray) -> tuple[str, int]:
    """The greedy answer of the stages one after the other, without an engine, and how long its prompt is."""
    session = model.session
    images, features = session.encode_images([frames])
    layout = model.processor.layout(model.processor.encode([Message("user", QUESTION, (0,))], images), images)
    logits = session.prefill(session.merge(layout, features), layout)
    ids = [int(logits[0, -1].argmax())]
    while len(ids) < TOKENS:
        ids.append(int(session.step(ids[-1])[0, -1].argmax()))
    return model.tokenizer.decode(ids).strip(), layout.input_ids.shape[1]


def test_frames_that_are_sent_are_answered_as_the_clip_is(package: Path, server: Served) -> None:
    with runtime_py.load(package, threads=1) as model:
        wanted = [alone(model, clip(seed)) for seed in range(2)]
        backwards = alone(model, clip(0)[::-1])
        for given in ([clip(0)], list(clip(0)), [clip(0)[:1], clip(0)[1:]]):  # one array, its frames, or both
            asked = Overrides(max_new_tokens=TOKENS, temperature=0.0, repetition_penalty=1.0, stop_ids=())
            assert model.chat(QUESTION, images=given, overrides=asked).text == wanted[0][0]
    assert len({text for text, _ in (*wanted, backwards)}) == 3, "or nothing is shown below"
    body = {"model": server.name, "max_tokens": TOKENS, "temperature": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    for seed, (text, tokens) in enumerate(wanted):
        said = Client(server.url).complete({**body, "messages": user_message(QUESTION, list(clip(seed)))})
        assert said["choices"][0]["message"]["content"] == text
        assert said["usage"]["prompt_tokens"] == tokens
