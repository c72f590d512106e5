"""Values that no file can hold are named by tensor, whatever the dtype and wherever they stand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from export.source import value_check
from export.source.checkpoint import open_checkpoint
from export.source.value_check import check_values
from export.source.weight_map import Rule, WeightMap, compute, take
from runtime_py.errors import CheckpointError

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def weights(folder: Path, tensors: dict[str, torch.Tensor], rules: list[Rule] | None = None) -> WeightMap:
    save_file(tensors, str(folder / "model.safetensors"))
    source = open_checkpoint(folder)
    return WeightMap(rules or [take(name, name, tuple(value.shape)) for name, value in tensors.items()], source)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_named_with_their_rows(tmp_path: Path, monkeypatch, dtype: torch.dtype, value: float) -> None:
    monkeypatch.setattr(value_check, "CHUNK", 8)
    tensor = torch.randn(10, 4).to(dtype)
    tensor[7, 3] = value
    checked = weights(tmp_path, {"good": torch.zeros(3, dtype=dtype), "bad": tensor})
    with pytest.raises(
        CheckpointError, match=r"1 tensor\(s\).*\n.*bad \(model\.safetensors\): NaN or infinity in rows 6 to 7"
    ):
        check_values(checked)


@settings(max_examples=60, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([torch.bfloat16, torch.float32]))
def test_float16_overflows_where_torch_says_so(
    tmp_path_factory: pytest.TempPathFactory, value: float, dtype: torch.dtype
) -> None:
    tensor = torch.tensor([0.0, value]).to(dtype)
    if not tensor.isfinite().all():
        return
    checked = weights(tmp_path_factory.mktemp("values"), {"w": tensor})
    check_values(checked)
    if bool(tensor.half().isfinite().all()):
        check_values(checked, ["w"])
    else:
        with pytest.raises(CheckpointError, match=r"w .*beyond float16"):
            check_values(checked, ["w"])


@pytest.mark.parametrize(("row", "told"), [(0, "0 to 1"), (7, "6 to 7"), (8, "8 to 8")])
def test_the_largest_value_beyond_float16_is_named_with_its_rows(tmp_path: Path, monkeypatch, row: int, told: str) -> None:
    monkeypatch.setattr(value_check, "CHUNK", 8)
    tensor = torch.full((9, 4), 66000.0)
    tensor[row, 1] = -70000.0
    checked = weights(tmp_path, {"w": tensor})
    with pytest.raises(CheckpointError, match=rf"w \(model\.safetensors\): 70000 in rows {told}, beyond float16"):
        check_values(checked, ["w"])
    tensor[row, 1] = math.nan
    with pytest.raises(CheckpointError, match=rf"NaN or infinity in rows {told}\n"):
        check_values(weights(tmp_path, {"w": tensor}))


def test_unused_integer_and_computed_tensors(tmp_path: Path) -> None:
    """What is not read is not looked at; a value that is computed on is not what the file will store."""
    tensors = {"unused": torch.tensor([math.nan]), "large": torch.tensor([1e6]), "whole": torch.tensor([3])}
    rules = [compute("made", [("large", (1,))], (1,), lambda value: value / 100), take("count", "whole", (1,))]
    told: list[tuple[int, int]] = []
    check_values(weights(tmp_path, tensors, rules), ["made", "count"], lambda done, whole: told.append((done, whole)))
    assert told[-1] == (12, 12)


def test_many_tensors_are_cut_at_twenty(tmp_path: Path) -> None:
    checked = weights(tmp_path, {f"w{i:02}": torch.tensor(math.nan) for i in range(30)})
    with pytest.raises(CheckpointError) as caught:
        check_values(checked)
    assert "30 tensor(s)" in caught.value.what and caught.value.what.endswith("and 10 more")
