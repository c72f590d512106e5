"""The pieces of mlc-chat-config.json that are worked out, not copied."""

from __future__ import annotations

from export.backends.mlc import chat_config
from runtime_py.backends.stock_engine import SentPicture


def test_the_engine_learns_the_size_of_what_is_sent():
    assert chat_config.vision_config(SentPicture(451, 448, 46, 96)) == {
        "vision_config": {"image_size": 451, "patch_size": 46}
    }
    assert chat_config.vision_config(None) == {}


def test_generation_takes_the_familys_sampling_and_the_checkpoints_tokens():
    ours = {"stop_ids": [7, 2], "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    settings = chat_config.generation({"eos_token_id": [7, 8], "pad_token_id": 3, "temperature": 5.0}, ours)
    assert (settings["temperature"], settings["top_p"], settings["repetition_penalty"]) == (0.6, 0.9, 1.1)
    assert (settings["eos_token_id"], settings["pad_token_id"], settings["bos_token_id"]) == ([7, 8], 3, None)
    greedy = chat_config.generation({}, {"stop_ids": [7, 2], "temperature": 0.0, "top_p": 0.9})
    assert (greedy["temperature"], greedy["top_p"], greedy["eos_token_id"]) == (0.0, 1.0, 7)
