"""Which files travel: every licence, no code, no weights; of two with one name the first, of licences both."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.source.checkpoint import WEIGHT_FILES
from export.source.side_files import (
    ALLOWED,
    CODE,
    IGNORED,
    RULES,
    Purpose,
    SideFile,
    has_vocabulary,
    named,
    purpose_of,
    require_vocabulary,
    side_files,
)
from runtime_py.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        *(
            (name, Purpose.LICENCE)
            for name in ("LICENSE", "LICENCE.txt", "MODEL_LICENSE.pdf", "license", "NOTICE", "COPYING")
        ),
        *((name, Purpose.LICENCE) for name in ("USE_POLICY.md", "Llama3-Use-Policy.md", "CogVLM2 License.md")),
        *((name, Purpose.CARD) for name in ("README.md", "readme.md", "Awaker2.5-VL.README.md")),
        ("config.json", Purpose.CONFIG),
        ("generation_config.json", Purpose.GENERATION),
        ("processor_config.json", Purpose.PICTURES),
        ("video_preprocessor_config.json", Purpose.PICTURES),
        ("tokenizer.model", Purpose.VOCABULARY),
        ("qwen.tiktoken", Purpose.VOCABULARY),
        ("chat_template.json", Purpose.READING),
        ("chat_template.jinja", Purpose.READING),
        ("model.safetensors.index.json", Purpose.READING),
        ("moe_config.json", Purpose.READING),
        *(
            (name, None)
            for name in ("modeling_license.py", "notice.ipynb", "requirements.txt", "logo.png", ".gitattributes")
        ),
    ],
)
def test_what_a_file_is_for(name: str, purpose: Purpose | None) -> None:
    assert purpose_of(name) is purpose


@settings(max_examples=50)
@given(
    st.sampled_from(["license", "LICENCE", "Notice"]),
    st.text("abcXYZ-_. 0", max_size=6),
    st.sampled_from(["", ".md", *CODE]),
)
def test_every_licence_travels_and_no_code(word: str, around: str, ending: str) -> None:
    purpose = purpose_of(f"{around}{word}{around}{ending}")
    assert purpose is (None if ending in CODE else Purpose.LICENCE)


@settings(max_examples=100)
@given(st.sampled_from([pattern for pattern, _ in RULES]), st.text("abXY-_.0", max_size=6), st.booleans(), st.booleans())
def test_the_hub_s_client_is_asked_for_the_same_files(pattern: str, around: str, upper: bool, code: bool) -> None:
    name = pattern.replace("*", around).replace("?", "-") + (".py" if code else "")
    name = name.upper() if upper and not code else name
    asked = any(fnmatchcase(name, allowed) for allowed in ALLOWED) and not any(fnmatchcase(name, one) for one in IGNORED)
    assert asked == (purpose_of(name) is not None)


def test_no_weights_are_among_them() -> None:
    names = [pattern.replace("*", "00001") for pattern in WEIGHT_FILES if not pattern.endswith(".index.json")]
    assert [purpose_of(name) for name in names] == [None] * len(names)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def test_parts_of_a_checkpoint_keep_their_licences(tmp_path: Path) -> None:
    write(tmp_path, {"config.json": "{}", "LICENSE": "whole", "llm/LICENSE": "language", "llm/tokenizer.json": "{}"})
    write(tmp_path, {"llm/config.json": "another", "llm/README.md": "#", "clip/LICENSE": "whole", "clip/vocab.json": "{}"})
    write(tmp_path, {"clip/NOTICE": "by", "modeling.py": "", "model.safetensors": "", "x.index.json": "{}"})
    places = [tmp_path, tmp_path / "llm"]
    copied = side_files(tmp_path, places, [tmp_path / "clip", tmp_path / "llm", tmp_path / "absent"])
    assert {file.name: file.path.as_posix() for file in copied} == {
        "LICENSE": "LICENSE",
        "NOTICE": "clip/NOTICE",
        "checkpoint.README.md": "llm/README.md",
        "config.json": "config.json",
        "llm.LICENSE": "llm/LICENSE",
        "tokenizer.json": "llm/tokenizer.json",
    }
    assert [file.name for file in copied] == sorted(file.name for file in copied)
    assert [file.name for file in named(copied, Purpose.LICENCE)] == ["LICENSE", "NOTICE", "llm.LICENSE"]


def test_licences_are_told_apart_by_their_words_and_not_by_their_size_and_time(tmp_path: Path) -> None:
    write(tmp_path, {"LICENSE": "whole", "llm/LICENSE": "other", "clip/LICENSE": "whole"})
    for path in tmp_path.rglob("LICENSE"):
        os.utime(path, ns=(10**18, 10**18))
    copied = side_files(tmp_path, [tmp_path], [tmp_path / "clip", tmp_path / "llm"])
    assert [file.name for file in copied] == ["LICENSE", "llm.LICENSE"]


def test_a_missing_tokenizer_is_an_error_that_names_the_waiver(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        require_vocabulary(tmp_path, [SideFile(Path("merges.txt"), "merges.txt", Purpose.TOKENS)])
    assert "--without-tokenizer" in caught.value.next_step and "tokenizer.model" in str(caught.value)
    assert not has_vocabulary(tmp_path)
    write(tmp_path, {"tokenizer.json": "{}"})
    assert has_vocabulary(tmp_path)
    require_vocabulary(tmp_path, side_files(tmp_path, [tmp_path]))


def test_what_has_the_name_of_a_side_file_and_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "licenses").mkdir()
    assert side_files(tmp_path, [tmp_path]) == ()
    for name in ("tokenizer.json", "LICENSE", "README.md"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name} is no file"):
            side_files(tmp_path, [tmp_path])
        (tmp_path / name).unlink()
