"""The parser and the flags that every program shares."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from runtime_py.command import flags
from runtime_py.command.parser import Parser
from runtime_py.errors import MachineError, UsageError, did_you_mean, nearest
from runtime_py.version import VERSION


def parser() -> Parser:
    made = Parser("tool", "Does it.")
    made.add_argument("--prefill-chunk", type=flags.whole_number(1))
    made.add_argument("--model", required=True)
    made.add_argument("-o", "--output")
    made.add_argument("--calibration")
    made.rename("--codes", "--calibration")
    made.remove("--fast", "it is always fast")
    flags.seed(made, "of it")
    flags.json_result(made)
    flags.json_file(made)
    flags.talk(made)
    return made


def test_snake_case_is_taken_for_kebab_case() -> None:
    given = parser().read(["--prefill_chunk", "64", "--model=my_model", "-o", "a_b"])
    assert (given.prefill_chunk, given.model, given.output) == (64, "my_model", "a_b")


def test_old_spellings_are_taken_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().read(["--model", "m", "--codes=there"]).calibration == "there"
    assert capsys.readouterr().err == "note: --codes is called --calibration now\n"
    assert "--codes" not in parser().format_help() and "--codes" not in parser().flags()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--modle", "m"], "did you mean --model?"),
        (["--model", "m", "--prefil-chunk=3"], "did you mean --prefill-chunk?"),
        (["--model", "m", "--prefill", "3"], "unknown flag: --prefill"),
        (["--model", "m", "--prefill-chunk", "0"], "0 is no whole number of at least 1"),
        (["--model", "m", "--prefill-chunk", "many"], "many is no whole number"),
        (["--model", "m", "rest"], "cannot place: rest"),
        (["--model", "m", "--json", "out.json"], "write a file with --json-file out.json"),
        (["--model", "m", "--fast"], "it is always fast"),
        (["--model"], "expected one argument"),
    ],
)
def test_complaints_are_usage_errors(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError) as told:
        parser().read(arguments)
    assert words in str(told.value)
    assert told.value.expected and told.value.next_step


def test_values_may_look_like_flags_where_they_hold_spaces() -> None:
    assert parser().read(["--model", "--what is it?"]).model == "--what is it?"


def test_every_parser_has_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().read(["--version"])
    assert not stopped.value.code
    assert capsys.readouterr().out == f"edgeproof {VERSION}\n"


def test_minus_one_draws_a_seed_and_says_which(caplog: pytest.LogCaptureFixture) -> None:
    assert parser().read(["--model", "m", "--seed", "-1"]).seed == -1
    assert flags.seed_number(7) == 7
    with caplog.at_level(logging.WARNING, "edgeproof"):
        drawn = {flags.seed_number(-1) for _ in range(8)}
    assert len(drawn) == 8 and all(0 <= seed < 2**32 for seed in drawn)
    assert {int(record.message.split()[1]) for record in caplog.records} == drawn
    for seed in (-2, 2**32):
        with pytest.raises(UsageError, match=f"--seed {seed}"):
            flags.seed_number(seed)


def test_mistyped_names_find_their_nearest() -> None:
    known = ["cpu", "desktop-gpu", "android", "ios"]
    assert nearest("Desktop_GPU", known) == ["desktop-gpu"]
    assert nearest("androd", known) == ["android"]
    assert nearest("toaster", known) == []
    assert did_you_mean("androd", known, "look") == "did you mean android? look"
    assert did_you_mean("toaster", known, "look") == "look"


def test_what_cannot_be_written_at_the_end_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name in (".", "file/below", "file/below/deeper"):
        with pytest.raises(UsageError):
            flags.file_to_write(str(tmp_path / name))
    for name in ("file", "file/below"):
        with pytest.raises(UsageError):
            flags.folder_to_write(str(tmp_path / name))
    for kind in (flags.file_to_write, flags.folder_to_write):
        with pytest.raises(MachineError, match="cannot be written"):
            kind("/proc/nothing/here")
        assert kind(str(tmp_path / "new" / "deep")) == tmp_path / "new" / "deep"
    assert flags.file_to_write(str(tmp_path / "file")).read_text() == "mine"
    assert flags.file_to_write("/dev/null") == Path("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is made before it is written"
