"""Conversations: what is asked and answered, what is said at once, and what Ctrl-C stops."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime_py.command.chat import Conversation, _turns, converse
from runtime_py.command.dispatch import Terminated
from runtime_py.conftest import AttentionBackend, model_of
from runtime_py.errors import EdgeproofError, ImageError, UsageError
from runtime_py.generation.generate import Overrides
from runtime_py.generation.session import Limits
from runtime_py.model import Model
from runtime_py.tokenizer import Tokenizer

LONG = Overrides(max_new_tokens=60, temperature=0.0, stop_ids=())


@pytest.fixture
def model(tmp_path: Path, words: Tokenizer) -> Model:
    return model_of(words, tmp_path, Limits(160, 7))


@pytest.fixture
def photo(tmp_path: Path, picture: np.ndarray) -> Path:
    path = tmp_path / "a picture.png"
    Image.fromarray(picture).save(path)
    return path


class Interrupting(io.StringIO):
    """An output at which somebody presses Ctrl-C when the first text of an answer appears."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.left = times

    def write(self, text: str) -> int:
        while self.left and text.strip():
            self.left -= 1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def talk(model: Model, out: io.StringIO, as_json: bool = False) -> Conversation:
    made = Conversation(model, LONG, as_json, out)
    made.stoppable = True
    return made


def test_an_interrupt_stops_the_answer_and_keeps_what_was_said(model: Model) -> None:
    out = Interrupting()
    conversation = talk(model, out)
    answer = conversation.ask("What colour?")
    assert str(answer.finish) == "stopped" and 1 <= len(answer.ids) < 60
    assert conversation.turns[-1].role == "assistant" and conversation.turns[-1].text == answer.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = conversation.ask("How many?")
    assert str(again.finish) == "length"
    assert again.timing.kept_tokens >= answer.timing.prompt_tokens, "the cache was kept"
    fresh = Model(model.package, AttentionBackend(len(model.tokenizer.pieces)), model.processor, model.tokenizer)
    assert fresh.chat(conversation.turns[:-1], overrides=LONG).ids == again.ids, "the cache was left whole"


def test_a_second_interrupt_ends_the_answer_at_once(model: Model) -> None:
    conversation = talk(model, Interrupting(times=2))
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("What colour?")
    assert conversation.turns == []


def test_an_interrupt_ends_a_single_question(model: Model) -> None:
    with pytest.raises(KeyboardInterrupt):
        converse(model, [], "What colour?", LONG, False, io.StringIO(), Interrupting())


class Keys:
    """A person who types some lines; an exception stands for a key or a signal."""

    typed = True

    def __init__(self, *typed: str | type[BaseException]) -> None:
        self.left = list(typed)

    def read(self) -> str | None:
        one = self.left.pop(0) if self.left else None
        if isinstance(one, type):
            raise one
        return one

    def close(self) -> None:
        pass


def test_an_interrupt_while_nothing_is_asked_changes_nothing(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    conversation = talk(model, out, as_json=True)
    assert _turns(conversation, Keys("What colour?", KeyboardInterrupt, "How many?")) == 0
    first, second = (json.loads(line)["timing"] for line in out.getvalue().splitlines())
    assert second["kept_tokens"] >= first["prompt_tokens"], "the cache was kept"
    assert "/exit or Ctrl-D leaves" in capsys.readouterr().err


def test_a_termination_ends_the_program_even_where_a_person_types(model: Model) -> None:
    with pytest.raises(Terminated):
        _turns(talk(model, io.StringIO()), Keys(Terminated))


def test_a_stopped_answer_says_so_in_json(model: Model) -> None:
    stream = model.generate("What colour?", overrides=LONG)
    first = next(iter(stream))
    stream.stop()
    assert [token.id for token in stream] == []
    assert stream.answer is not None and stream.answer.ids == (first.id,) and stream.answer.finish == "stopped"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/imag a.png", "did you mean /image"),
        ("/?", "/? is no command"),
        ("/image", "/image without a file"),
        ("/image  ", "/image without a file"),
        ("/home/me/a.png what is it", "with a space before it"),
    ],
)
def test_commands_that_are_none_are_said(model: Model, line: str, said: str) -> None:
    conversation = talk(model, io.StringIO())
    with pytest.raises(UsageError) as told:
        conversation.take(line)
    assert said in str(told.value)
    assert conversation.turns == []


def test_a_space_makes_a_question_of_a_command(model: Model) -> None:
    conversation = talk(model, io.StringIO())
    conversation.take(" /image is what?")
    assert conversation.turns[0].text == "/image is what?"


def test_pictures_are_read_when_they_are_named(model: Model, photo: Path, tmp_path: Path) -> None:
    conversation = talk(model, io.StringIO())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in ("none.png", "bad.png", "."):
        with pytest.raises(ImageError):
            conversation.take(f"/image {tmp_path / name}")
    assert conversation.waiting == []
    conversation.take(f"/image '{photo}'")
    photo.unlink()
    conversation.take("What colour?")
    conversation.take("How many?")
    assert [turn.images for turn in conversation.turns if turn.role == "user"] == [(0,), ()]


def test_a_picture_that_the_model_does_not_take_now_is_refused_when_it_is_named(model: Model, photo: Path) -> None:
    """MiniCPM-V takes one picture, with the first question."""
    conversation = talk(model, io.StringIO())
    conversation.take(f"/image {photo}")
    with pytest.raises(UsageError):
        conversation.take(f"/image {photo}")
    assert len(conversation.waiting) == 1
    conversation.take("What colour?")
    with pytest.raises(UsageError):
        conversation.take(f"/image {photo}")
    conversation.take("/reset")
    conversation.take(f"/image {photo}")


def test_a_question_that_is_refused_leaves_its_picture_for_the_next(model: Model, photo: Path) -> None:
    conversation = talk(model, io.StringIO())
    conversation.take(f"/image {photo}")
    with pytest.raises(UsageError, match="<image>"):
        conversation.take("What is an <image> tag?")
    assert len(conversation.waiting) == 1 and conversation.turns == []
    conversation.take("What is this?")
    assert conversation.turns[0].images == (0,) and conversation.waiting == []


def test_conversation_from_a_pipe(
    model: Model, picture: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a picture.png"
    Image.fromarray(picture).save(path)
    script = f"/image {path}\nWhat colour?\n\nHow many?\n/image {tmp_path}/none.png\n/reset\nred\n/exit\nnever\n"
    out = io.StringIO()
    code = converse(model, [], None, Overrides(), True, io.StringIO(script), out)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(rows) == 3
    assert rows[1]["timing"]["kept_tokens"] >= rows[0]["timing"]["prompt_tokens"]
    assert rows[2]["timing"]["kept_tokens"] == 0
    assert code == 2 and "none.png is no file" in capsys.readouterr().err


def test_one_prompt_streams_to_the_output(model: Model) -> None:
    out = io.StringIO()
    assert converse(model, [], "What colour?", Overrides(), False, io.StringIO(), out) == 0
    assert out.getvalue().strip() == model.chat("What colour?").text


def test_a_pipe_goes_on_after_a_failed_turn_and_ends_with_its_code(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    lines = io.StringIO("What colour?\n/nothing\nHow many?\n")
    assert converse(model, [], None, Overrides(), True, lines, out) == 2
    assert len([json.loads(line) for line in out.getvalue().splitlines()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: /nothing is no command\n  expected: ") and "\n  next: " in printed


def test_a_prompt_that_is_no_text_is_refused(model: Model) -> None:
    with pytest.raises(EdgeproofError, match="--prompt is no text"):
        converse(model, [], "\udcff", Overrides(), False, io.StringIO(), io.StringIO())


def test_a_photograph_that_lies_on_its_side_is_told_of_when_it_is_named(
    model: Model, tmp_path: Path, picture: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    photo = tmp_path / "photo.jpg"
    Image.fromarray(picture).save(photo, exif=exif)
    conversation = talk(model, io.StringIO())
    conversation.take(f"/image {photo}")
    conversation.take("What colour?")
    conversation.take("And now?")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--upright" in caplog.text
    model.upright = True
    conversation.take("/reset")
    conversation.take(f"/image {photo}")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("temperature", "told"), [(None, False), (0.0, False), (0.7, True)])
def test_prompt_lookup_that_does_nothing_is_told_of(
    model: Model, temperature: float | None, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = Overrides(max_new_tokens=2, temperature=temperature, prompt_lookup=3)
    assert converse(model, [], "What colour?", overrides, False, io.StringIO(), io.StringIO()) == 0
    assert ("drawn at temperature 0.7, so --prompt-lookup guesses nothing" in caplog.text) is told
