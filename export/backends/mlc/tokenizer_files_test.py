"""What mlc-chat-config.json says about a tokenizer, and the tokenizer files of a phone's package."""

from __future__ import annotations

import json

import pytest

from export.backends.mlc import tokenizer_files
from runtime_py.errors import CheckpointError


def write(folder, **fields):
    (folder / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("decoder", "expected"),
    [
        ({"type": "ByteLevel"}, "byte_level"),
        ({"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}]}, "byte_fallback"),
        ({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}, "byte_level"),
        (None, "byte_fallback"),
    ],
)
def test_token_postprocessing_follows_the_decoder(tmp_path, decoder, expected):
    write(tmp_path, decoder=decoder, normalizer=None)
    assert tokenizer_files.tokenizer_info(tmp_path)["token_postproc_method"] == expected


def test_spaces_of_a_llama_tokenizer(tmp_path):
    write(
        tmp_path,
        decoder={"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
    )
    info = tokenizer_files.tokenizer_info(tmp_path)
    assert info["prepend_space_in_encode"]
    assert info["strip_space_in_decode"]


def test_duplicate_added_tokens_are_refused(tmp_path):
    write(tmp_path, added_tokens=[{"content": "<a>"}, {"content": "<b>"}, {"content": "<a>"}])
    with pytest.raises(CheckpointError, match="<a>"):
        tokenizer_files.active_vocabulary(tmp_path, 10)


def test_tables_of_added_tokens_alone_are_no_tokenizer(tmp_path):
    """A checkpoint for rehearsals and goldens has the ids of its marks and no tokenizer."""
    source, package = tmp_path / "source", tmp_path / "package"
    source.mkdir()
    package.mkdir()
    (source / "tokenizer_config.json").write_text("{}")
    assert tokenizer_files.copy_tokenizer(source, package) == []
    assert not list(package.iterdir())
    (source / "tokenizer.json").write_text("{}")
    assert tokenizer_files.copy_tokenizer(source, package) == ["tokenizer.json", "tokenizer_config.json"]
