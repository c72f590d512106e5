"""A package's tokenizer as strangers open it: transformers and the tokenizers library give the published ids."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from export.package.tokenizer_files import write_tokenizer
from export.package.tokenizer_probes import probes
from parity_tests.laboratory.tokenizer_texts import (
    DEMOS,
    FAMILIES,
    main,
    marks_of,
    package_folder,
    published,
    published_folder,
    readers,
    texts,
)
from runtime_py import tokenizer

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint's folder and what a package would hold of it."""
    home = tmp_path_factory.mktemp(request.param)
    place = published_folder(request.param, home)
    return place, package_folder(request.param, place, home)


def test_everybody_gives_the_published_ids(pair: tuple[Path, Path]) -> None:
    place, package = pair
    marks = marks_of(package)
    asked = [*probes(marks), *texts(random.Random(1), 100, marks)]
    expected = list(map(published(place), asked))
    for name, encode in readers(package).items():
        assert [text for text, ids in zip(asked, expected, strict=True) if encode(text) != ids] == [], name


@pytest.mark.slow
def test_ten_thousand_texts_of_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "10000"]) == 0, capsys.readouterr().out


def test_a_package_has_one_tokenizer(pair: tuple[Path, Path]) -> None:
    place, package = pair
    config = json.loads((package / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"auto_map", "chat_template", "added_tokens_decoder", "add_bos_token", "legacy"} & set(config)
    library = transformers.PreTrainedTokenizerFast.from_pretrained(package)
    stated = json.loads((place / "tokenizer_config.json").read_text()) if (place / "tokenizer_config.json").is_file() else {}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(library, role) == stated.get(role)


@pytest.mark.parametrize("name", ["xverse-v", "cogvlm2", "awaker2.5-vl"])
def test_truncation_and_padding_are_off_in_the_file(name: str, tmp_path: Path) -> None:
    place, package = Path(shutil.copytree(DEMOS / name, tmp_path / "c")), tmp_path / "p"
    package.mkdir()
    value = json.loads((place / "tokenizer.json").read_text(encoding="utf-8"))
    pad = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
    cut = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    changed = {**value, "truncation": cut, "padding": {"strategy": {"Fixed": 12}, **pad}}
    (place / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    write_tokenizer(place, package)
    assert json.loads((package / "tokenizer.json").read_text(encoding="utf-8")) == value
    library, plain = transformers.AutoTokenizer.from_pretrained(package), published(DEMOS / name)
    for text in ("a", "What colour is the circle in the picture, and why is it where it is?"):
        assert library(text, add_special_tokens=False).input_ids == plain(text) == tokenizer.load(package).encode(text)
