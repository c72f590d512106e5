from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_py.conftest import QUERIES, minicpm_settings
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs, Message
from runtime_py.preprocess.minicpm_v import Processor
from runtime_py.tokenizer import Tokenizer

GOLDENS = Path(__file__).parents[2] / "parity_tests" / "goldens"
NEWLINE = 5
"""Id of the line end in the published vocabulary."""
BLOCK = [101, *[0] * QUERIES, 102]


def _golden(name: str, words: Tokenizer | None = None) -> tuple[Processor, dict[str, np.ndarray]]:
    config: dict[str, Any] = json.loads((GOLDENS / name / "config.json").read_text())
    settings = minicpm_settings(
        "2.0" if config.get("slice_mode") else "1.0",
        image_size=config["image_size"],
        native_grid=config["timm_model_args"]["img_size"] // 14,
        queries=config["query_num"],
        width=config["hidden_size"],
        scale_resolution=config.get("scale_resolution"),
        max_slices=config.get("max_slice_nums"),
    )
    with np.load(GOLDENS / name / "inputs.npz") as arrays:
        return Processor(settings, words), dict(arrays)


def test_squashed_pixels_equal_the_golden() -> None:
    processor, golden = _golden("minicpm-v")
    [image] = processor.images([golden["image"]])
    np.testing.assert_allclose(image.vision["pixel_values"], golden["pixel_values"], atol=1e-6)
    layout = processor.layout(golden["input_ids"], [image])
    start, end = golden["image_bound"][0]
    assert np.flatnonzero(layout.image_rows).tolist() == list(range(start, end))
    np.testing.assert_array_equal(layout.decoder["position_ids"], golden["position_ids"])


def test_slices_and_their_prompt_equal_the_golden(words: Tokenizer) -> None:
    processor, golden = _golden("minicpm-v-2", words)
    images = processor.images([golden["image"]])
    for index, image in enumerate(images):
        expected = (golden[f"slice_uint8_{index}"] / 255.0 - 0.5) / 0.5
        np.testing.assert_allclose(image.vision["pixel_values"][0], expected.transpose(2, 0, 1), atol=1e-6)
    ids = processor.encode([Message("user", "red", (0,))], images)[0].tolist()
    block = golden["input_ids"][0].tolist()
    assert _blocks(ids) == block[block.index(101) : block.index(112) + 2]
    layout = processor.layout(golden["input_ids"], images)
    bounds = [row for start, end in golden["image_bound"] for row in range(start, end)]
    assert np.flatnonzero(layout.image_rows).tolist() == bounds


def _blocks(ids: list[int]) -> list[int]:
    """From the first image mark to the newline behind the last slice mark."""
    return ids[ids.index(101) : len(ids) - ids[::-1].index(112) + 1]


def test_first_turn_is_laid_out_as_published(words: Tokenizer, picture: np.ndarray) -> None:
    processor = Processor(minicpm_settings(), words)
    images = processor.images([picture])
    ids = processor.encode([Message("user", "What colour?", (0,))], images)[0].tolist()
    user, answer = words.encode("<用户>"), words.encode("\nWhat colour?<AI>")
    assert ids == [1, *user, *BLOCK, *answer]
    assert answer[0] == NEWLINE


def test_later_turns_follow_without_separators(words: Tokenizer, picture: np.ndarray) -> None:
    processor = Processor(minicpm_settings(), words)
    images = processor.images([picture])
    turns = [Message("user", "What colour?", (0,)), Message("assistant", "红色的"), Message("user", "How many?")]
    ids = processor.encode(turns, images)[0].tolist()
    tail = words.encode("\nWhat colour?<AI>红色的<用户>How many?<AI>")
    assert ids == [1, *words.encode("<用户>"), *BLOCK, *tail]
    first = processor.encode(turns[:1], images)[0].tolist()
    assert ids[: len(first)] == first


def test_text_alone_has_no_newline(words: Tokenizer) -> None:
    ids = Processor(minicpm_settings(), words).encode([Message("user", "red")], [])[0].tolist()
    assert ids == [1, *words.encode("<用户>red<AI>")]


@pytest.mark.parametrize("grid", [(3, 2), (2, 3), (1, 2), (4, 1)])
def test_rows_of_slices_are_joined_by_newlines(words: Tokenizer, grid: tuple[int, int]) -> None:
    processor = Processor(minicpm_settings("2.0"), words)
    images = [ImageInputs({}, {}, QUERIES, 0, {"grid": np.array(grid)})] * (1 + grid[0] * grid[1])
    ids = processor.encode([Message("user", "red", (0,))], images)[0].tolist()
    rows = [BLOCK * grid[0]] * grid[1]
    joined = rows[0] + [token for row in rows[1:] for token in (5, *row)]
    assert _blocks(ids) == [*BLOCK, 111, *joined, 112, 5]
    assert int(processor.layout(np.array([ids]), images).image_rows.sum()) == QUERIES * len(images)


def test_long_text_is_cut_from_the_right_with_a_warning(words: Tokenizer, picture: np.ndarray, caplog: Any) -> None:
    processor = Processor(minicpm_settings(limit=40), words)
    images = processor.images([picture])
    with caplog.at_level(logging.WARNING):
        ids = processor.encode([Message("user", "shape " * 50, (0,))], images)
    assert ids.shape == (1, 40) and "cut to the model's 40" in caplog.text
    assert int(processor.layout(ids, images).image_rows.sum()) == QUERIES


def test_image_rows_are_never_cut(words: Tokenizer, picture: np.ndarray) -> None:
    processor = Processor(minicpm_settings(limit=9), words)
    with pytest.raises(UsageError, match="of which the pictures take the first"):
        processor.encode([Message("user", "red", (0,))], processor.images([picture]))


@pytest.mark.parametrize(
    "turns",
    [
        [Message("system", "be brief"), Message("user", "red")],
        [Message("user", "red"), Message("user", "blue")],
        [Message("user", "red"), Message("assistant", "yes")],
        [],
    ],
)
def test_other_orders_of_roles_are_refused(words: Tokenizer, turns: list[Message]) -> None:
    with pytest.raises(UsageError, match="roles"):
        Processor(minicpm_settings(), words).encode(turns, [])


def test_one_picture_in_the_first_turn_alone(words: Tokenizer, picture: np.ndarray) -> None:
    processor = Processor(minicpm_settings(), words)
    two = processor.images([picture, picture])
    with pytest.raises(UsageError, match="one picture"):
        processor.encode([Message("user", "red", (0, 1))], two)
    turns = [Message("user", "red"), Message("assistant", "yes"), Message("user", "blue", (0,))]
    with pytest.raises(UsageError, match="one picture"):
        processor.encode(turns, two[:1])
    with pytest.raises(UsageError, match="one picture"):
        processor.encode([Message("user", "red")], two[:1])


def test_marks_in_the_text_are_refused(words: Tokenizer, picture: np.ndarray) -> None:
    processor = Processor(minicpm_settings(), words)
    images = processor.images([picture])
    with pytest.raises(UsageError, match=r"turn 1 .* holds <image>"):
        processor.encode([Message("user", "what is <image>?", (0,))], images)
    doubled = np.concatenate([processor.encode([Message("user", "what?", (0,))], images)] * 2, axis=1)
    with pytest.raises(UsageError, match="2 image start"):
        processor.layout(doubled, images)
