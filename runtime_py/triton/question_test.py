"""What Triton's reader makes of tensors."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime_py
from runtime_py.engine.service import Service, Sizes
from runtime_py.preprocess.cogvlm2 import Processor
from runtime_py.preprocess.cogvlm2_test import SETTINGS
from runtime_py.preprocess.xverse_v_test import LetterTokenizer
from runtime_py.serving.pictures import PictureLimits
from runtime_py.serving.refusal import Refusal
from runtime_py.serving.room import Reservation, Room
from runtime_py.triton.question import Reader, Tensors, picture_of


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), shade, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("video", [True, False])
def test_the_pictures_of_a_request_are_one_clip_where_the_family_takes_clips(exported: Path, video: bool) -> None:
    processor = Processor({**SETTINGS, "video": video}, LetterTokenizer())
    with runtime_py.load(exported, threads=1) as model:
        service = Service(model.package, model.backend, processor, model.tokenizer, Sizes(slots=1))
        try:
            room = Room()
            held = Reservation(room, 1000)
            tensors = Tensors({"text_input": [b"a"], "image": [png(1), png(2), png(1)]})
            question = Reader(service, PictureLimits(), 1 << 20).read(tensors, held)
        finally:
            service.close()
    assert room.free == (1 << 30) - tensors.nbytes - 2 * 3 * 4 * 6, "the picture that is there twice is decoded once"
    if video:
        assert [clip.shape for clip in question.pictures] == [(3, 4, 6, 3)]
        assert question.pictures[0][:, 0, 0, 0].tolist() == [1, 2, 1]
        assert [turn.images for turn in question.turns] == [(0,)]
    else:
        assert [turn.images for turn in question.turns] == [(0, 1, 2)]
        assert question.pictures[0] is question.pictures[2]


@pytest.mark.parametrize("columns", [4, 40, 76])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_base64_may_be_wrapped_at_any_column(columns: int, end: bytes) -> None:
    text = base64.b64encode(png(5))
    wrapped = end.join(text[start : start + columns] for start in range(0, len(text), columns)) + end
    for form in (wrapped, end + wrapped):
        assert (picture_of(form, PictureLimits()) == 5).all()


@pytest.mark.parametrize("head", [b"P6\n6 4\n255\n", b"P6 6 4 255 "])
def test_a_ppm_file_whose_bytes_are_all_text_is_no_base64(head: bytes) -> None:
    assert (picture_of(head + b"A" * 72, PictureLimits()) == ord("A")).all()


def test_base64_that_is_too_long_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(5)
    assert picture_of(base64.b64encode(content), PictureLimits(bytes=len(content))).shape == (4, 6, 3)
    monkeypatch.setattr("runtime_py.triton.question.of_base64", lambda text: pytest.fail("decoded"))
    with pytest.raises(Refusal, match="larger than 30 bytes") as refused:
        picture_of(base64.b64encode(content), PictureLimits(bytes=30))
    assert (refused.value.status, refused.value.param) == (413, "image")
