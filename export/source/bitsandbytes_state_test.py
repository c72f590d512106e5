"""What is refused of matrices of bitsandbytes, each in one sentence that names the matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from export.source.bitsandbytes_source import dequantised
from export.source.bitsandbytes_source_test import Held
from parity_tests.laboratory.bitsandbytes_checkpoint import Form, eight_bits, four_bits
from runtime_py.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
STATE = "m.weight.quant_state.bitsandbytes__nf4"


def refusal(tensors: Tensors) -> str:
    with pytest.raises(CheckpointError) as told:
        dequantised(Held(tensors))
    assert len(str(told.value)) < 1200 and str(told.value).count("\n") == 2, str(told.value)
    assert "m." in told.value.what and "full-precision" in told.value.next_step
    return told.value.expected


def stored(nested: bool = True) -> Tensors:
    return four_bits("m.weight", torch.randn(8, 96), Form("nf4", nested))


def text(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def told(**changes: Any) -> torch.Tensor:
    state = json.loads(bytes(stored()[STATE].tolist())) | changes
    return text(json.dumps({key: value for key, value in state.items() if value != "gone"}).encode())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blocksize": 0}, "a blocksize of 32, 64"),
        ({"blocksize": -64}, "a blocksize of 32, 64"),
        ({"blocksize": 2**62}, "a blocksize of 32, 64"),
        ({"blocksize": 10**300}, "a blocksize of 32, 64"),
        ({"blocksize": 96}, "a blocksize of 32, 64"),
        ({"blocksize": 64.0}, "a blocksize of 32, 64"),
        ({"blocksize": True}, "a blocksize of 32, 64"),
        ({"blocksize": "64"}, "a blocksize of 32, 64"),
        ({"blocksize": 128}, "m.weight.absmax of uint8, shape [6]"),
        ({"nested_blocksize": 0}, "a nested_blocksize of 32, 64"),
        ({"nested_blocksize": 32}, None),
        ({"nested_offset": "3"}, "a finite nested_offset"),
        ({"nested_offset": 10**300}, "a finite nested_offset"),
        ({"nested_offset": 1e39}, "a finite nested_offset"),
        ({"nested_offset": None}, "a finite nested_offset"),
        ({"nested_offset": "gone"}, "all of nested_blocksize, nested_dtype, nested_offset"),
        ({"nested_dtype": "float16"}, "a nested_dtype of float32"),
        ({"quant_type": "fp4"}, "the quant_type nf4"),
        ({"quant_type": "int4"}, "a quant_type of nf4 or fp4"),
        ({"quant_type": ["nf4"]}, "a quant_type of nf4 or fp4"),
        ({"dtype": "float64"}, "a dtype of bfloat16 or float16 or float32"),
        ({"dtype": "os.system"}, "a dtype of bfloat16 or float16 or float32"),
        ({"shape": [8, 95]}, "a column of 380 bytes for the shape [8, 95]"),
        ({"shape": [16, 96]}, "a column of 768 bytes"),
        ({"shape": [2**40, 2**40]}, "a shape of 1 to 8 sizes"),
        ({"shape": [-8, -96]}, "a shape of 1 to 8 sizes"),
        ({"shape": [768, 0]}, "a shape of 1 to 8 sizes"),
        ({"shape": []}, "a shape of 1 to 8 sizes"),
        ({"shape": [1] * 100}, "a shape of 1 to 8 sizes"),
        ({"shape": None}, "a shape of 1 to 8 sizes"),
        ({"shape": "gone"}, "a quant_state with blocksize, dtype, quant_type, shape"),
        ({"another": 1}, "a quant_state with blocksize, dtype, quant_type, shape"),
    ],
)
def test_states_that_do_not_fit(changes: dict[str, Any], expected: str | None) -> None:
    tensors = {**stored(), STATE: told(**changes)}
    if expected is None:  # 12 scales are one block of 32 as of 256
        dequantised(Held(tensors))
    else:
        assert refusal(tensors).startswith(expected)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is not JSON"),
        (b'{"quant_type": "nf4", "blocksi', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 1500, "too deeply"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "too deeply"),
        (b'{"blocksize":' + b"9" * 1900 + b"}", "1900 digits"),
        (b'{"blocksize": 64, "blocksize": 64}', "given twice"),
        (b'{"nested_offset": NaN}', "no number of JSON"),
        (b'{"nested_offset": 1e999}', "infinite"),
        (b"[1]", "no sound matrix"),
        (b" " * 2001, "no sound matrix"),
    ],
)
def test_hostile_json(content: bytes, what: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        dequantised(Held({**stored(), STATE: text(content)}))
    assert what in caught.value.what and "m.weight" in caught.value.what and len(str(caught.value)) < 900


def dropped(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dropped("m.weight"), "the tensor 'm.weight' beside it"),
        (dropped("m.weight.absmax"), "the tensor 'm.weight.absmax' beside it"),
        (dropped("m.weight.quant_map"), "the tensor 'm.weight.quant_map' beside it"),
        (dropped("m.weight.nested_absmax"), "the tensor 'm.weight.nested_absmax' beside it"),
        (dropped("m.weight.nested_quant_map"), "the tensor 'm.weight.nested_quant_map' beside it"),
        (put("m.weight.absmax", torch.zeros(11, dtype=torch.uint8)), "m.weight.absmax of uint8, shape [12]"),
        (put("m.weight.absmax", torch.zeros(12)), "m.weight.absmax of uint8, shape [12]"),
        (put("m.weight.nested_absmax", torch.zeros(2)), "m.weight.nested_absmax of float32, shape [1]"),
        (put("m.weight.nested_absmax", torch.zeros(1).half()), "m.weight.nested_absmax of float32, shape [1]"),
        (put("m.weight.nested_quant_map", torch.zeros(255)), "m.weight.nested_quant_map of float32, shape [256]"),
        (put("m.weight.quant_map", torch.zeros(17)), "m.weight.quant_map of bfloat16 or float16 or float32, shape [16]"),
        (put("m.weight.quant_map", torch.linspace(-1, 1, 16)), "the values of nf4 in m.weight.quant_map"),
        (put("m.weight.quant_map", torch.full((16,), torch.nan)), "the values of nf4 in m.weight.quant_map"),
        (put("m.weight", torch.zeros(383, 1, dtype=torch.uint8)), "a column of 384 bytes"),
        (put("m.weight", torch.zeros(1, 384, dtype=torch.uint8)), "a column of 384 bytes"),
        (put("m.weight", torch.zeros(8, 96)), "a column of 384 bytes"),
        (put(STATE.replace("nf4", "int3"), text(b"{}")), "a quant_type of nf4 or fp4"),
        (put(STATE.replace("nf4", "fp4"), told(quant_type="fp4")), "the values of fp4"),
        (put(STATE, torch.zeros(2, 2, dtype=torch.uint8)), f"{STATE} of at most 2000 bytes, uint8"),
        (put(STATE, torch.zeros(9)), f"{STATE} of at most 2000 bytes, uint8"),
    ],
)
def test_parts_that_are_missing_or_do_not_fit(change: Callable[[Tensors], object], expected: str) -> None:
    tensors = stored()
    change(tensors)
    assert refusal(tensors).startswith(expected)


def test_plain_scales_of_the_wrong_length_or_dtype() -> None:
    for absmax in (torch.zeros(13), torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.uint8)):
        expected = refusal({**stored(nested=False), "m.weight.absmax": absmax})
        assert expected.startswith("m.weight.absmax of bfloat16 or float16 or float32, shape [12]")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("m.SCB", torch.zeros(9)), "m.SCB of float32, shape [8]"),
        (put("m.SCB", torch.zeros(8).half()), "m.SCB of float32, shape [8]"),
        (put("m.weight", torch.zeros(8, 2, 2, dtype=torch.int8)), "int8 of two axes"),
        (put("m.weight_format", torch.tensor(2, dtype=torch.uint8)), "rows in order"),
        (put("m.weight_format", torch.zeros(3, dtype=torch.uint8)), "m.weight_format of uint8, shape []"),
        (put("m.weight_format", torch.tensor(0.0)), "m.weight_format of uint8, shape []"),
    ],
)
def test_eight_bits_that_do_not_fit(change: Callable[[Tensors], object], expected: str) -> None:
    tensors = eight_bits("m.weight", torch.randn(8, 24))
    change(tensors)
    assert refusal(tensors).startswith(expected)


def test_eight_bits_of_before_their_layout_was_told() -> None:
    """As bitsandbytes itself takes rows in order where no ``weight_format`` is stored."""
    tensors = eight_bits("m.weight", torch.randn(8, 24))
    whole = dequantised(Held(tensors)).read("m.weight")
    del tensors["m.weight_format"]
    assert torch.equal(dequantised(Held(tensors)).read("m.weight"), whole)


def test_two_forms_of_one_matrix() -> None:
    tensors = four_bits("m.weight", torch.randn(8, 96), Form(storage="int8")) | {"m.SCB": torch.zeros(384)}
    assert refusal(tensors).startswith("one quantised form of it")
