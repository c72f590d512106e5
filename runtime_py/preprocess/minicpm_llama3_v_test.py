"""Slices, positions and prompt of MiniCPM-Llama3-V 2.5 against statements of the published rules that share no code with
them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.families.minicpm_llama3_v.prompt import prompt
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.minicpm_llama3_v import Processor, row_positions

TOKENS = {
    "bos": 1000,
    "eos": 1001,
    "unk": 1002,
    "start_header": 1006,
    "end_header": 1007,
    "eot": 1009,
    "image_start": 1010,
    "image_end": 1011,
    "slice_start": 1020,
    "slice_end": 1021,
}
MARKS = {
    "<|begin_of_text|>": "bos",
    "<unk>": "unk",
    "<|start_header_id|>": "start_header",
    "<|end_header_id|>": "end_header",
    "<|eot_id|>": "eot",
    "<image>": "image_start",
    "</image>": "image_end",
    "<slice>": "slice_start",
    "</slice>": "slice_end",
}
QUERIES = 5


class Characters:
    """A tokenizer of code points that counts how a text is cut: joined texts and texts in pieces give other ids."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text] + ([999] if len(text) > 1 else [])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids)

    def token_id(self, token: str) -> int | None:
        return TOKENS[MARKS[token]] if token in MARKS else None


def settings(limit: int = 2048, **changes: Any) -> dict[str, Any]:
    return {
        "variant": "2.5",
        "image_size": 448,
        "patch_size": 14,
        "side": 70,
        "queries": QUERIES,
        "width": 32,
        "max_slices": 9,
        "prompt": replace(prompt({mark: TOKENS[name] for mark, name in MARKS.items()}), limit=limit).to_json(),
        **changes,
    }


def processor(**changes: Any) -> Processor:
    return Processor(settings(**changes), Characters())


def tokenised(text: str) -> list[int]:
    """The whole prompt through a tokenizer that takes special tokens out first, as the published chat does it."""
    ids: list[int] = []
    plain = ""
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        if mark is None:
            plain, text = plain + text[0], text[1:]
            continue
        ids += Characters().encode(plain) if plain else []
        ids.append(TOKENS[MARKS[mark]])
        plain, text = "", text[len(mark) :]
    return ids + (Characters().encode(plain) if plain else [])


def rendered(turns: Sequence[tuple[str, str]]) -> str:
    """The published chat template: BOS once, header, trimmed content and end of turn, and the header of the answer."""
    text = "<|begin_of_text|>"
    for role, content in turns:
        text += f"<|start_header_id|>{role}<|end_header_id|>\n\n{content.strip()}<|eot_id|>"
    return text + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def placeholder(grid: tuple[int, int]) -> str:
    """Overview, then (columns, rows) of cells between the slice marks."""
    block = "<image>" + "<unk>" * QUERIES + "</image>"
    rows = "\n".join([block * grid[0]] * grid[1])
    return block + (f"<slice>{rows}</slice>" if grid != (0, 0) else "")


def published_pieces(picture: Image.Image, side: int, limit: int) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The rule in words: about side x side pixels a piece, sides in whole patches of 14; the nearest aspect among the grids
    of one cell fewer, as many and one more than the area asks for."""

    def whole(length: float, unit: int) -> int:
        return max(unit, unit * round(length / unit))

    def about(width: float, height: float, enlarge: bool) -> tuple[int, int]:
        if enlarge or width * height > side * side:
            tall = int(side / (width / height) ** 0.5)
            width, height = int(tall * (width / height)), tall
        return whole(width, 14), whole(height, 14)

    width, height = picture.size
    wanted = min(limit, math.ceil(width * height / side**2))
    if wanted < 2:
        return [np.asarray(picture.resize(about(width, height, True), Image.Resampling.BICUBIC))], (0, 0)
    totals = [total for total in (wanted - 1, wanted, wanted + 1) if 1 < total <= limit]
    grids = [(c, total // c) for total in totals for c in range(1, total + 1) if total % c == 0]
    across, down = min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))
    wide, tall = about(whole(width, across) / across, whole(height, down) / down, True)
    sheet = picture.resize((wide * across, tall * down), Image.Resampling.BICUBIC)
    cells = [(c * wide, r * tall, (c + 1) * wide, (r + 1) * tall) for r in range(down) for c in range(across)]
    overview = picture.resize(about(width, height, False), Image.Resampling.BICUBIC)
    return [np.asarray(overview), *(np.asarray(sheet.crop(cell)) for cell in cells)], (across, down)


def test_200_random_sizes_are_cut_by_the_published_rule() -> None:
    draw = np.random.default_rng(25)
    sizes = np.exp(draw.uniform(np.log(12), np.log(420), (200, 2))).astype(int).tolist()
    tool, grids = processor(image_size=56, width=8), set()
    for width, height in sizes:
        picture = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images = tool.images([picture])
        expected, grid = published_pieces(Image.fromarray(picture), 56, 9)
        assert len(images) == len(expected), (width, height)
        assert tuple(images[0].state["grid"]) == grid, (width, height)
        for image, piece in zip(images, expected, strict=True):
            wanted = (piece.astype(np.float64) / 255 - 0.5) / 0.5
            np.testing.assert_allclose(image.vision["pixel_values"][0], wanted.transpose(2, 0, 1), atol=1e-6)
            patches = piece.shape[0] // 14 * (piece.shape[1] // 14)
            assert image.vision["patch_positions"].shape == (patches,)
            assert image.connector["key_positions"].shape == (patches, 8)
        grids.add(grid)
    assert len(grids) > 12


def test_positions_are_the_published_torch_expressions() -> None:
    torch = pytest.importorskip("torch")
    for side in (10, 70):
        boundaries = torch.arange(1 / side, 1.0, 1 / side)
        for count in [*range(1, 200), 840, 1008, 1023, 1024, 1036, 1056, 2100]:
            places = torch.arange(0, 1 - 1e-6, 1 / torch.ones(1, count, dtype=torch.bool)[0].sum())
            expected = torch.bucketize(places, boundaries, right=True).numpy()
            np.testing.assert_array_equal(row_positions(count, side), expected, err_msg=f"{count} patches, {side}")


def test_positions_run_along_one_row_of_the_table() -> None:
    [image] = processor().images([np.zeros((448, 448, 3), np.uint8)])
    positions = image.vision["patch_positions"]
    assert (positions.min(), positions.max()) == (0, 69)
    assert (np.diff(positions) >= 0).all()
    assert len(set(np.bincount(positions).tolist())) > 1, "1024 patches over 70 places: 14 or 15 each"


@pytest.mark.parametrize("size", [(40, 30), (900, 500), (500, 1400)])
def test_conversation_with_a_picture_equals_the_rendered_template(size: tuple[int, int]) -> None:
    tool = processor()
    images = tool.images([np.zeros((size[1], size[0], 3), np.uint8)])
    grid: tuple[int, int] = tuple(images[0].state["grid"].tolist())
    turns = [Message("user", "  What is this?\n", (0,)), Message("assistant", " A cat. "), Message("user", "Sure? ")]
    wanted = [("user", placeholder(grid) + "\n  What is this?\n"), ("assistant", " A cat. "), ("user", "Sure? ")]
    for count in (1, 3):
        ids = tool.encode(turns[:count], images)
        assert ids[0].tolist() == tokenised(rendered(wanted[:count]))
        assert int(tool.layout(ids, images).image_rows.sum()) == QUERIES * len(images)


def test_a_picture_without_a_question_has_no_newline() -> None:
    tool = processor()
    images = tool.images([np.zeros((40, 30, 3), np.uint8)])
    ids = tool.encode([Message("user", " ", (0,))], images)[0].tolist()
    assert ids == tokenised(rendered([("user", placeholder((0, 0)) + "\n ")]))


def test_pictures_of_later_turns_and_a_system_prompt() -> None:
    tool = processor()
    images = tool.images([np.zeros((40, 30, 3), np.uint8), np.zeros((500, 900, 3), np.uint8)])
    second: tuple[int, int] = tuple(images[1].state["grid"].tolist())
    turns = [
        Message("system", "Be brief."),
        Message("user", "One?", (0,)),
        Message("assistant", "1"),
        Message("user", "Two?", (1,)),
    ]
    wanted = [
        ("system", "Be brief."),
        ("user", placeholder((0, 0)) + "\nOne?"),
        ("assistant", "1"),
        ("user", placeholder(second) + "\nTwo?"),
    ]
    ids = tool.encode(turns, images)
    assert ids[0].tolist() == tokenised(rendered(wanted))
    assert int(tool.layout(ids, images).image_rows.sum()) == QUERIES * len(images)


def test_long_text_is_cut_and_pictures_are_not(caplog: pytest.LogCaptureFixture) -> None:
    images = processor().images([np.zeros((40, 30, 3), np.uint8)])
    question = [Message("user", "why " * 60, (0,))]
    with caplog.at_level(logging.WARNING):
        assert processor(limit=90).encode(question, images).shape == (1, 90)
    assert "cut to the model's 90" in caplog.text
    with pytest.raises(UsageError, match="of which the pictures take the first"):
        processor(limit=12).encode(question, images)


@pytest.mark.parametrize(
    ("turns", "count", "told"),
    [
        ([], 0, "roles"),
        ([Message("assistant", "hello")], 0, "roles"),
        ([Message("user", "a"), Message("tool", "b")], 0, "roles"),
        ([Message("user", "a"), Message("system", "b")], 0, "roles"),
        ([Message("user", "a")], 1, "pictures placed"),
        ([Message("user", "a", (0, 0))], 1, "pictures placed"),
        ([Message("user", "a", (1, 0))], 2, "pictures placed"),
        ([Message("user", "a"), Message("assistant", "b", (0,))], 1, "pictures placed"),
    ],
)
def test_other_conversations_are_refused(turns: list[Message], count: int, told: str) -> None:
    tool = processor()
    images = tool.images([np.zeros((40, 30, 3), np.uint8)] * count)
    with pytest.raises(UsageError, match=told):
        tool.encode(turns, images)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        Processor(settings(), None).encode([Message("user", "a")], [])
