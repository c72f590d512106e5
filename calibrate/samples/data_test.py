"""Samples: built-in ones by seed, a user's folder, and how they reach the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibrate.samples.data import built_in, divided, from_folder, held_out_of_folder
from calibrate.samples.pictures import photograph
from runtime_py.errors import ImageError, UsageError


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    few, many, other = list(built_in(3, 7)), list(built_in(9, 7)), list(built_in(3, 8))
    for one, same, different in zip(few, many, other, strict=False):
        assert one.messages == same.messages
        assert np.array_equal(one.pictures[0], same.pictures[0])
        assert not np.array_equal(one.pictures[0], different.pictures[0])


def test_both_languages_and_all_kinds_come_up() -> None:
    texts = [message.text for sample in built_in(24, 0) for message in sample.messages]
    joined = "\n".join(texts)
    for part in ("图中写着什么", "What does the text say", "Which day", "哪一天", "What is in the photo", "照片"):
        assert part in joined


def test_text_only_keeps_the_words() -> None:
    for shown, told in zip(built_in(8, 1), built_in(8, 1, text_only=True), strict=True):
        assert not told.pictures
        assert [m.text for m in told.messages] == [m.text for m in shown.messages]
        assert not any(m.images for m in told.messages)


def test_photographs_have_a_falling_spectrum() -> None:
    picture = photograph(256, 256, np.random.default_rng(0)).mean(axis=2)
    power = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    bands = [power[(frequency > low) & (frequency <= 2 * low)].mean() for low in (0.02, 0.04, 0.08, 0.16)]
    slopes = np.diff(np.log2(bands))
    assert np.all(np.abs(slopes + 2) < 0.5), "power falls as the square of the frequency"


def write(folder: Path, rows: list[object]) -> None:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(folder / "a.png")
    text = "\n".join(json.dumps(row) if not isinstance(row, str) else row for row in rows)
    (folder / "conversations.jsonl").write_text(text, encoding="utf-8")


GOOD = {"images": ["a.png"], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Grey."}]}
TALK = {"messages": [{"role": "user", "content": "Hello"}]}


def test_a_folder_of_conversations(tmp_path: Path) -> None:
    write(tmp_path, [GOOD, "", TALK])
    first, second = from_folder(tmp_path, None, 0)
    assert first.pictures[0].shape == (20, 30, 3)
    assert first.messages[0].images == (0,)
    assert first.messages[1].text == "Grey."
    assert not second.pictures
    assert from_folder(tmp_path, None, 0, text_only=True)[0].pictures == ()
    assert len(from_folder(tmp_path, 1, 3)) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2"),
        ('{"images": []}', "line 2.*messages"),
        ("[]", "line 2"),
        ({"messages": [{"role": "user"}]}, "line 2"),
        ({"images": "a.png", "messages": []}, "line 2.*list of texts"),
    ],
)
def test_a_bad_line_is_named(row: object, said: str, tmp_path: Path) -> None:
    write(tmp_path, [GOOD, row])
    with pytest.raises(UsageError, match=said):
        from_folder(tmp_path, None, 0)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"conversations\.jsonl does not exist"):
        from_folder(tmp_path, None, 0)
    write(tmp_path, [{**GOOD, "images": ["b.png"]}])
    with pytest.raises((UsageError, ImageError), match=r"line 1.*b\.png"):
        from_folder(tmp_path, None, 0)


@given(total=st.integers(1, 60), count=st.none() | st.integers(1, 70), held_out=st.integers(0, 70), seed=st.integers(0, 5))
def test_no_line_is_both_sample_and_held_out(total: int, count: int | None, held_out: int, seed: int) -> None:
    chosen, apart = divided(total, count, held_out, seed)
    assert not set(chosen) & set(apart)
    assert set(chosen) | set(apart) <= set(range(total))
    assert len(apart) <= held_out
    assert len(chosen) >= min(count or total, total - total // 5)
    spare = total - min(count or total, total)
    assert len(apart) == min(held_out, max(spare, total // 5))
    if held_out <= spare:
        assert chosen == divided(total, count, 0, seed)[0], "lines to spare: the choice stays"


def test_lines_held_out_keep_their_pictures(user_folder: Path) -> None:
    samples = from_folder(user_folder, None, 0, text_only=True, held_out=4)
    apart = held_out_of_folder(user_folder, None, 0, 4)
    assert (len(samples), len(apart)) == (10, 2)
    assert all(sample.pictures for sample in apart)
    assert not held_out_of_folder(user_folder, None, 0, 0)
