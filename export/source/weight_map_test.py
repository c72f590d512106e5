"""Rules over a real checkpoint file: rows equal slices of the whole, and every disagreement is reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from export.source.checkpoint import open_files
from export.source.tensor_source import TensorInfo, TensorSource
from export.source.weight_map import Rule, WeightMap, compute, compute_rows, stack, stack_rules, take
from runtime_py.errors import CheckpointError

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


class Counting:
    """A source that keeps the rows it was asked for."""

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.asked: list[tuple[str, int, int | None]] = []

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self.source.infos

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        self.asked.append((name, start, stop))
        return self.source.read(name, start, stop)


def bound(folder: Path, tensors: dict[str, torch.Tensor], rules: Sequence[Rule], ignored: Sequence[str] = ()) -> WeightMap:
    save_file(tensors, folder / "model.safetensors")
    return WeightMap(rules, Counting(open_files([folder / "model.safetensors"])), ignored)


def asked(weights: WeightMap) -> list[tuple[str, int, int | None]]:
    assert isinstance(weights.source, Counting)
    return weights.source.asked


def lora(w: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return w + 2 * b @ a


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_rows_are_slices_of_the_whole(tmp_path: Path, data: st.DataObject) -> None:
    """Plain stacks, stacks of computed rules, and row joins, of mixed dtypes and any sizes."""
    tensors: dict[str, torch.Tensor] = {}
    parts, expected = [], []
    for index in range(data.draw(st.integers(1, 4))):
        rows, dtype = data.draw(st.integers(0, 5)), data.draw(st.sampled_from(FLOATS))
        w, a, b = (torch.randn(size).to(dtype) for size in ((rows, 3), (2, 3), (rows, 2)))
        tensors |= {f"w{index}": w, f"a{index}": a, f"b{index}": b}
        kind = data.draw(st.sampled_from(["take", "compute", "compute_rows"]))
        stored = [(f"{name}{index}", tuple(tensors[f"{name}{index}"].shape)) for name in "wba"]
        if kind == "take":
            parts.append(take("", *stored[0]))
            expected.append(w)
        elif kind == "compute":
            parts.append(compute("", stored, (rows, 3), lora))
            expected.append(lora(w.float(), b.float(), a.float()))
        else:
            flags = [(*entry, by_rows) for entry, by_rows in zip(stored, (True, True, False), strict=True)]
            parts.append(compute_rows("", flags, (rows, 3), lora))
            expected.append(lora(w.float(), b.float(), a.float()))
    weights = bound(
        tmp_path,
        tensors,
        [stack_rules("x", parts), stack("y", [(n, tuple(t.shape)) for n, t in tensors.items() if n[0] == "w"])],
    )
    want = {"x": torch.cat(expected), "y": torch.cat([t for n, t in tensors.items() if n[0] == "w"])}
    for target, whole in want.items():
        assert weights.tensor(target).dtype == whole.dtype
        torch.testing.assert_close(weights.tensor(target), whole, rtol=1e-6, atol=1e-6)
        count = whole.shape[0]
        start = data.draw(st.integers(0, count))
        stop = data.draw(st.integers(start, count))
        rows_read = weights.rows(target, start, stop)
        assert rows_read.dtype == whole.dtype and rows_read.shape == (stop - start, 3)
        torch.testing.assert_close(rows_read, weights.tensor(target)[start:stop], rtol=1e-6, atol=1e-6)


def test_a_stack_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    tensors = {name: torch.randn(4, 3) for name in "qkv"}
    weights = bound(tmp_path, tensors, [stack("x", [(name, (4, 3)) for name in "qkv"])])
    assert torch.equal(weights.rows("x", 3, 6), torch.cat([tensors["q"][3:], tensors["k"][:2]]))
    assert asked(weights) == [("q", 3, 4), ("k", 0, 2)]


def test_a_row_join_reads_rows_and_keeps_what_is_whole(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(6, 3), "b": torch.randn(6, 2), "a": torch.randn(2, 3)}
    parts = [("w", (6, 3), True), ("b", (6, 2), True), ("a", (2, 3), False)]
    weights = bound(tmp_path, tensors, [compute_rows("x", parts, (6, 3), lora)])
    weights.check({"x": (6, 3)})
    chunks = torch.cat([weights.rows("x", start, start + 2) for start in (0, 2, 4)])
    torch.testing.assert_close(chunks, lora(tensors["w"], tensors["b"], tensors["a"]))
    assert [entry for entry in asked(weights) if entry[0] == "a"] == [("a", 0, None)]
    assert {entry for entry in asked(weights) if entry[0] == "w"} == {("w", 0, 2), ("w", 2, 4), ("w", 4, 6)}


def test_chunks_of_a_computed_parameter_compute_it_once(tmp_path: Path) -> None:
    calls = []

    def transposed(matrix: torch.Tensor) -> torch.Tensor:
        calls.append(matrix.dtype)
        return matrix.T

    weights = bound(
        tmp_path, {"m": torch.arange(6.0).bfloat16().reshape(2, 3)}, [compute("x", [("m", (2, 3))], (3, 2), transposed)]
    )
    first = weights.rows("x", 0, 1)
    first.fill_(99)
    assert weights.rows("x", 0, 2).tolist() == [[0, 3], [1, 4]], "what a caller does to its rows stays with it"
    assert weights.tensor("x").tolist() == [[0, 3], [1, 4], [2, 5]]
    assert calls == [torch.float32]


def test_two_computed_parts_without_a_name_are_kept_apart(tmp_path: Path) -> None:
    parts = [compute("", [(name, (2,))], (2,), torch.neg) for name in "ab"]
    tensors = {"a": torch.tensor([1.0, 2]), "b": torch.tensor([3.0, 4])}
    assert bound(tmp_path, tensors, [stack_rules("x", parts)]).tensor("x").tolist() == [-1, -2, -3, -4]


def test_scalars_and_bad_ranges(tmp_path: Path) -> None:
    weights = bound(tmp_path, {"s": torch.tensor(3.0), "m": torch.ones(2, 3)}, [take("s", "s", ()), take("m", "m", (2, 3))])
    assert weights.tensor("s").item() == 3
    assert weights.rows("m", 1, 1).shape == (0, 3)
    for start, stop in ((0, 3), (-1, 1), (2, 1)):
        with pytest.raises(IndexError, match="which has 2"):
            weights.rows("m", start, stop)


def test_check_lists_everything_at_once(tmp_path: Path) -> None:
    tensors = {
        "fine": torch.ones(2),
        "misshapen": torch.ones(3, 2),
        "mistyped": torch.ones(2, dtype=torch.int64),
        "surplus": torch.ones(1),
        "layers.0.rotary.inv_freq": torch.ones(1),
    }
    rules = [
        take("a", "fine", (2,)),
        take("b", "misshapen", (2, 3)),
        compute("b2", [("misshapen", (2, 3))], (2,), torch.sum),
        take("c", "mistyped", (2,)),
        take("d", "absent", (2,)),
        take("unwanted", "fine", (2,)),
    ]
    weights = bound(tmp_path, tensors, rules, ["*.inv_freq"])
    with pytest.raises(CheckpointError) as caught:
        weights.check({"a": (3,), "b": (2, 3), "b2": (2,), "c": (2,), "d": (2,), "unfed": (1,)})
    lines = [line.strip() for line in caught.value.what.splitlines()[1:]]
    assert lines == [
        "missing: absent",
        "left over: surplus [1]",
        "wrong shape: misshapen is [3, 2], expected [2, 3]",
        "wrong dtype: mistyped is int64, expected one of bfloat16, float16, float32",
        "no rule for parameter: unfed",
        "rule without parameter: unwanted",
        "rule shape: a gives [2], module wants [3]",
    ]
    assert "7 problem(s)" in caught.value.what


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_parameters_without_values_are_what_zero_leaves(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = bound(tmp_path, {"a": torch.ones(2), "b": torch.ones(shape)}, [take("x", "a", (2,)), take("y", "b", (2, 3))])
    with pytest.raises(CheckpointError, match="wrong shape: b is") as caught:
        weights.check()
    assert "ZeRO stage 3" in caught.value.next_step and "zero_to_fp32.py" in caught.value.next_step


def test_check_accepts_what_fits(tmp_path: Path) -> None:
    weights = bound(tmp_path, {"a": torch.ones(2).half(), "b": torch.ones(1)}, [take("x", "a", (2,))], ["b"])
    weights.check({"x": (2,)})


def test_mistakes_in_rules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rules for x"):
        WeightMap([take("x", "a", (2,)), take("x", "b", (2,))], open_files([]))
    with pytest.raises(ValueError, match="cannot be stacked"):
        stack("x", [("a", (2, 3)), ("b", (2, 4))])
    with pytest.raises(ValueError, match="need the parameter's"):
        compute_rows("x", [("w", (5, 3), True)], (6, 3), torch.neg)
    weights = bound(tmp_path, {"a": torch.ones(2, 3)}, [compute("x", [("a", (2, 3))], (2, 3), torch.t)])
    with pytest.raises(ValueError, match=r"made \[3, 2\], not \[2, 3\]"):
        weights.tensor("x")
