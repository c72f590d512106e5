"""The loaded model over a tiny real causal model in NumPy: conversations, cache reuse, limits, streaming."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime_py.backends.base import Arrays
from runtime_py.backends.choice import MOST_THREADS, open_backend
from runtime_py.backends.record import Ability, OpeningChoices, RuntimeBackend
from runtime_py.backends.registry import register, withdraw
from runtime_py.conftest import AttentionBackend, minicpm_settings, model_of
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION, StageContract
from runtime_py.errors import ImageError, PackageError, UsageError
from runtime_py.generation.conversation import fingerprint
from runtime_py.generation.generate import Finish, Overrides
from runtime_py.generation.session import Limits
from runtime_py.model import Model, open_processor
from runtime_py.preprocess.base import Message
from runtime_py.preprocess.minicpm_v import Processor
from runtime_py.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path: Path, words: Tokenizer) -> Model:
    return model_of(words, tmp_path, Limits(160, 7))


def _calls(model: Model) -> list[int]:
    assert isinstance(model.backend, AttentionBackend)
    return model.backend.calls


def test_streamed_pieces_are_the_answer(model: Model, picture: np.ndarray) -> None:
    pieces: list[str] = []
    answer = model.chat("What colour?", [picture], pieces.append)
    assert answer.finish is Finish.LENGTH and len(answer.ids) == 12
    assert answer.text == model.tokenizer.decode(answer.ids).strip()
    assert "".join(pieces).strip() in answer.text and pieces
    run = model.generate("What colour?", [picture])
    assert [token.id for token in run] == list(answer.ids)
    assert run.answer is not None and run.answer.ids == answer.ids


class AheadBackend(AttentionBackend):
    """One that remembers what it was told to open."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.expected: list[str] = []

    def open_ahead(self, stages: Collection[str]) -> None:
        self.expected += stages

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        assert stage in self.expected, f"{stage} ran before it was expected"
        return super().run(stage, inputs)


def test_what_an_answer_needs_is_opened_ahead_and_no_tower_without_a_picture(model: Model, picture: np.ndarray) -> None:
    stages = {stage: StageContract(stage, (), ()) for stage in (VISION, CONNECTOR, EMBED, DECODER)}
    backend = AheadBackend(len(model.tokenizer.pieces))
    ahead = Model(replace(model.package, contracts=stages), backend, model.processor, model.tokenizer)
    ahead.chat("What colour?")
    assert backend.expected == [EMBED, DECODER]
    ahead.chat("What colour?", [picture])
    assert set(backend.expected) == set(stages)


def test_the_second_turn_feeds_its_new_tokens_alone(model: Model, picture: np.ndarray) -> None:
    first = model.chat("What colour?", [picture])
    turns = [Message("user", "What colour?", (0,)), Message("assistant", first.text), Message("user", "How many?")]
    fresh = Model(model.package, AttentionBackend(len(model.tokenizer.pieces)), model.processor, model.tokenizer)
    expected = fresh.chat(turns, [picture])
    _calls(model).clear()
    second = model.chat(turns, [picture])
    assert second.ids == expected.ids
    assert second.timing.kept_tokens >= first.timing.prompt_tokens
    assert sum(_calls(model)) == second.timing.prompt_tokens - second.timing.kept_tokens + second.timing.steps
    assert second.timing.image_seconds == 0.0


def test_another_picture_keeps_nothing_behind_its_first_row(model: Model, picture: np.ndarray) -> None:
    model.chat("What colour?", [picture])
    other = 255 - picture
    answer = model.chat("What colour?", [other])
    start = model.processor.encode([Message("user", "", (0,))], model.processor.images([other]))[0].tolist().index(101) + 1
    assert answer.timing.kept_tokens == start
    fresh = Model(model.package, AttentionBackend(len(model.tokenizer.pieces)), model.processor, model.tokenizer)
    assert answer.ids == fresh.chat("What colour?", [other]).ids


def test_the_same_question_again_gives_the_same_answer(model: Model, picture: np.ndarray) -> None:
    first = model.chat("What colour?", [picture])
    second = model.chat("What colour?", [picture])
    assert second.ids == first.ids and second.timing.kept_tokens == first.timing.prompt_tokens - 1


def test_a_backend_that_cannot_rewind_starts_again(model: Model) -> None:
    class Forward:
        """The same model without rewind."""

        name = "numpy"

        def __init__(self, inner: AttentionBackend) -> None:
            self.run, self.start, self.forward, self.close = inner.run, inner.start, inner.forward, inner.close

    stiff = Model(model.package, Forward(AttentionBackend(len(model.tokenizer.pieces))), model.processor, model.tokenizer)
    first = stiff.chat("What colour?")
    assert stiff.chat("What shape?").timing.kept_tokens == 0
    assert stiff.chat("What colour?").ids == first.ids


def test_stop_tokens_end_the_answer_unseen(model: Model) -> None:
    answer = model.chat("What colour?")
    stop = answer.ids[3]
    place = answer.ids.index(stop)
    stopped = model.chat("What colour?", overrides=Overrides(stop_ids=(stop,)))
    assert stopped.ids == answer.ids[:place] and stopped.finish is Finish.STOP


def test_a_stopped_answer_ends_with_what_there_is_of_it(model: Model) -> None:
    whole = model.chat("What colour?")
    run = model.generate("What colour?")
    ids = []
    for token in run:
        ids.append(token.id)
        if len(ids) == 3:
            run.stop()
    assert run.answer is not None and run.answer.finish is Finish.STOPPED
    assert run.answer.ids == tuple(ids) == whole.ids[: len(ids)] and len(ids) < len(whole.ids)
    assert run.answer.text == model.tokenizer.decode(ids).strip()
    assert model.chat("What colour?").ids == whole.ids


def test_an_answer_says_where_its_time_went(model: Model, picture: np.ndarray) -> None:
    first = model.chat("What colour?", [picture]).timing
    again = model.chat("What colour?", [picture]).timing
    assert (first.answer_tokens, first.steps, first.guessed_tokens) == (12, 11, 0)
    assert first.image_seconds > 0 and again.image_seconds == 0
    assert (first.kept_tokens, again.kept_tokens) == (0, first.prompt_tokens - 1)
    for timing in (first, again):
        assert timing.queue_seconds > 0 and timing.prefill_seconds > 0 and timing.decode_seconds > 0
        assert timing.image_seconds + timing.queue_seconds + timing.prefill_seconds <= timing.first_token_seconds
        assert timing.first_token_seconds + timing.decode_seconds < 60
        assert timing.decode_rate == pytest.approx(11 / timing.decode_seconds)


def test_the_context_ends_the_answer(model: Model) -> None:
    model.package = replace(model.package, limits=Limits(30, 7))
    short = Model(model.package, model.backend, model.processor, model.tokenizer)
    answer = short.chat("red", overrides=Overrides(max_new_tokens=500))
    assert answer.finish is Finish.CONTEXT
    assert answer.timing.prompt_tokens + len(answer.ids) == 31
    _calls(model).clear()
    with pytest.raises(UsageError, match="at most 30"):
        short.chat("red " * 60)
    assert _calls(model) == []


def test_sampling_is_repeatable_by_seed(model: Model) -> None:
    def ask(seed: int) -> tuple[int, ...]:
        return model.chat("red?", overrides=Overrides(temperature=1.5, seed=seed, top_k=0, top_p=1.0)).ids

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_an_abandoned_answer_does_not_disturb_the_next(model: Model) -> None:
    expected = model.chat("What colour?").ids
    model.reset()
    left = iter(model.generate("How many shapes?"))
    next(left)
    next(left)
    assert model.chat("What colour?").ids == expected
    with pytest.raises(UsageError, match="left for another"):
        next(left)
    assert model.chat("What colour?").ids == expected


def test_message_forms_are_equal(model: Model, picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = model.chat("red?", [picture]).ids
    parts = [{"type": "image"}, {"type": "text", "text": "red?"}]
    own = [{"type": "image", "image": str(tmp_path / "a.png")}, {"type": "text", "text": "red?"}]
    for messages, images in (
        ([{"role": "user", "content": "red?"}], [tmp_path / "a.png"]),
        ([{"role": "user", "content": parts}], [Image.fromarray(picture)]),
        ([{"role": "user", "content": own}], []),
        ([Message("user", "red?", (0,))], [picture]),
    ):
        assert model.chat(messages, images).ids == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": [{"type": "sound"}]}], ["x"]]
)
def test_other_messages_are_refused(model: Model, messages: list[object]) -> None:
    with pytest.raises(UsageError):
        model.chat(messages)  # type: ignore[arg-type]


def test_more_image_parts_than_pictures_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="more than the 0 pictures"):
        model.chat([{"role": "user", "content": [{"type": "image"}]}])


def test_unknown_backends_and_processors_are_refused(model: Model) -> None:
    with pytest.raises(UsageError, match="backend 'coreml'"):
        open_backend(model.package, "coreml")
    for name in ("no_such", "../model", "base.os"):
        with pytest.raises(PackageError, match="processor"):
            open_processor(replace(model.package, processor=name), None)


def test_a_backend_is_opened_with_what_it_can_be_given(model: Model) -> None:
    seen: list[OpeningChoices] = []

    def opened(_folder: Path, _manifest: object, chosen: OpeningChoices) -> AttentionBackend:
        seen.append(chosen)
        return AttentionBackend()

    able = RuntimeBackend("numpy files", "able", "NumPy arrays", (), opened, (), abilities=frozenset({Ability.THREADS}))
    unable = replace(able, name="other files", runtime_name="unable", abilities=frozenset(), threads_variable="N_THREADS")
    package = replace(model.package, manifest={"backends": {"numpy files": {"file": "a"}}})
    register(able)
    register(unable)
    try:
        assert isinstance(open_backend(package, "able", threads=2), AttentionBackend)
        assert seen == [OpeningChoices(threads=2)]
        with pytest.raises(UsageError, match="providers"):
            open_backend(package, "able", providers=["CUDA"])
        for threads in (-1, True, MOST_THREADS + 1, 10**30):
            with pytest.raises(UsageError, match="threads"):
                open_backend(package, "able", threads=threads)
        with pytest.raises(UsageError) as caught:
            open_backend(package, "unable", threads=2)
        assert "or able" in caught.value.expected and caught.value.next_step == "set N_THREADS in the environment"
        with pytest.raises(PackageError, match="holds no NumPy arrays") as missing:
            open_backend(package, "unable")
        assert missing.value.expected == "one of the backends it was exported for: able"
        assert missing.value.next_step.startswith("leave backend 'unable' out")
        provided = replace(package, manifest={"backends": {}})
        with pytest.raises(PackageError, match="holds no ONNX graphs") as missing:
            open_backend(provided, "ort", providers=["webgpu"])  # chosen by the provider, and not by --backend
        assert missing.value.next_step.startswith("leave the provider out")
    finally:
        withdraw(able)
        withdraw(unable)


def test_a_conversation_that_the_model_cannot_hold_is_refused_before_pictures_are_prepared(
    model: Model, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.processor, "images", lambda pictures: pytest.fail("pictures were prepared"))
    turns = [Message("user", "red?"), Message("assistant", "yes"), Message("user", "blue?", (0,))]
    with pytest.raises(UsageError, match=r"turn 3 brings a picture(.|\n)*/reset"):
        model.chat(turns, [picture])


def test_photographs_are_turned_when_asked_for(model: Model, tmp_path: Path, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "photo.png"
    Image.fromarray(picture[: picture.shape[0] // 2]).save(photo, exif=exif)

    def seen(upright: bool | None = None) -> tuple[str, ...]:
        model.chat("What colour?", [photo], upright=upright)
        return tuple(model._preparation._known)

    half = picture[: picture.shape[0] // 2]
    stored, turned = ((fingerprint(pixels),) for pixels in (half, np.ascontiguousarray(np.rot90(half, -1))))
    assert seen() == stored
    assert seen(upright=True) == turned
    model.upright = True
    assert seen() == turned
    assert seen(upright=False) == stored
    with pytest.raises(UsageError, match="upright is 1"):
        model.chat("What colour?", [photo], upright=1)  # type: ignore[arg-type]


def test_a_picture_of_more_rows_than_the_context_is_refused_before_it_is_decoded(model: Model, tmp_path: Path) -> None:
    settings = {**minicpm_settings(), "variant": "2.0", "scale_resolution": 28, "max_slices": 60, "native_grid": 2}
    model.processor = Processor(settings, model.tokenizer)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "large.png").write_bytes(whole[:1000])
    with pytest.raises(ImageError, match=r"large.png is 400 x 400 pixels, which makes \d+ rows of the prompt"):
        model.chat("What colour?", [tmp_path / "large.png"])
