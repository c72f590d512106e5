"""Settings files of a package: as published, but for the names of code that does not travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.package.carried_settings import carried
from runtime_py.errors import CheckpointError

PATH = Path("config.json")


def written(value: object) -> bytes:
    return json.dumps(value).encode()


def test_files_that_name_no_code_stay_byte_for_byte() -> None:
    for content in (b'{"a":  1}', b"[1, 2]", written({"why": "auto_map"})):
        assert carried(content, PATH) == content


def test_code_beside_the_file_is_left_out_and_the_order_kept() -> None:
    local = {"AutoConfig": "configuration_x.XConfig"}
    value = {"b": 1, "auto_map": local, "a": {"auto_map": local, "c": "é"}}
    kept = carried(written(value), PATH)
    assert json.loads(kept) == {"b": 1, "a": {"c": "é"}}
    assert list(json.loads(kept)) == ["b", "a"]
    assert "é".encode() in kept and kept.endswith(b"}\n")


def test_code_of_a_repository_stays() -> None:
    value = {"auto_map": {"AutoConfig": "org/name--c.C", "AutoModel": "m.M", "AutoTokenizer": ["org/name--t.T", None]}}
    kept = {"AutoConfig": "org/name--c.C", "AutoTokenizer": ["org/name--t.T", None]}
    assert json.loads(carried(written(value), PATH)) == {"auto_map": kept}
    whole = written({"auto_map": kept})
    assert carried(whole, PATH) == whole


def test_how_the_checkpoint_s_weights_were_quantised_is_left_out() -> None:
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    value = {"b": 1, "quantization_config": quantised, "text_config": {"quantization_config": quantised, "c": 2}}
    assert json.loads(carried(written(value), PATH)) == {"b": 1, "text_config": {"c": 2}}


def test_a_file_that_is_no_json_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        carried(b'{"auto_map": ', PATH)


def test_a_byte_order_mark_stays_behind() -> None:
    assert carried(b'\xef\xbb\xbf{"a": 1}', PATH) == b'{"a": 1}'
