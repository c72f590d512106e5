"""Matrices of bitsandbytes, read as the library itself reads them, some rows at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from export.source import bitsandbytes_source
from export.source.bitsandbytes_source import Dequantised, dequantised
from export.source.bitsandbytes_state import KINDS, code_values
from export.source.checkpoint import open_checkpoint, open_files
from export.source.safetensors_reader_test import same_bits
from export.source.tensor_source import TensorInfo
from parity_tests.laboratory.bitsandbytes_checkpoint import Form, dynamic_values, eight_bits, four_bits
from parity_tests.laboratory.bitsandbytes_golden import CASES, stored_and_read

GOLDEN = Path(__file__).parents[2] / "parity_tests" / "goldens" / "bitsandbytes"


class Held:
    """Tensors in memory as a source."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.infos = {
            name: TensorInfo(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), Path("model"), t.nbytes)
            for name, t in tensors.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        value = self.tensors[name]
        return value[start:stop].clone() if value.dim() else value.clone()


def plainly(stored: dict[str, torch.Tensor], name: str, form: Form, shape: tuple[int, ...]) -> torch.Tensor:
    """The same values, every element by itself."""
    codes = stored[name].view(-1).view(torch.uint8).long()
    values = code_values(form.kind)[torch.stack([codes >> 4, codes & 15], 1).view(-1)]
    absmax = stored[f"{name}.absmax"]
    if form.nested:
        scale = stored[f"{name}.nested_absmax"].repeat_interleave(256)[: len(absmax)]
        offset = torch.tensor(float(bytes(stored[f"{name}.quant_state.bitsandbytes__{form.kind}"]).split(b" ")[-1][:-1]))
        absmax = dynamic_values()[absmax.long()] * scale + offset
    scales = absmax.repeat_interleave(form.blocksize)
    count = torch.Size(shape).numel()
    return (values[:count] * scales[:count]).view(shape).to(getattr(torch, form.dtype))


@pytest.mark.parametrize("name", CASES)
def test_the_library_s_own_matrices_are_read_as_it_reads_them(name: str) -> None:
    source = dequantised(open_files([GOLDEN / "stored.safetensors"]))
    assert set(source.infos) == {f"{case}.weight" for case in CASES}
    expected, info = load_file(GOLDEN / "read.safetensors")[f"{name}.weight"], source.infos[f"{name}.weight"]
    assert (info.shape, info.dtype) == (tuple(expected.shape), str(expected.dtype).removeprefix("torch."))
    assert info.nbytes == expected.nbytes
    assert torch.equal(source.read(info.name), expected)
    for start in range(info.shape[0]):
        for stop in range(start, info.shape[0] + 1):
            assert torch.equal(source.read(info.name, start, stop), expected[start:stop])
    with pytest.raises(IndexError):
        source.read(info.name, 0, info.shape[0] + 1)


@pytest.mark.parametrize("name", CASES)
def test_the_laboratory_stores_what_the_library_stores(name: str) -> None:
    shape, form = CASES[name]
    matrix, stored = load_file(GOLDEN / "given.safetensors")[f"{name}.weight"], load_file(GOLDEN / "stored.safetensors")
    assert matrix.shape == shape
    ours = eight_bits(f"{name}.weight", matrix) if form.kind == "int8" else four_bits(f"{name}.weight", matrix, form)
    assert set(ours) == {tensor for tensor in stored if tensor.startswith(f"{name}.")}
    for tensor, value in ours.items():
        assert same_bits(value + 0 if value.is_floating_point() else value, stored[tensor]), tensor


FORMS = st.builds(
    Form,
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([32, 64, 128, 1024, 4096]),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)


@settings(max_examples=60, deadline=None)
@given(FORMS, st.integers(1, 70), st.integers(1, 90), st.integers(0, 2**31), st.data())
def test_any_rows_of_any_form(form: Form, rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    shape = (rows, columns)
    stored = four_bits("a", torch.randn(shape, generator=torch.Generator().manual_seed(seed)), form)
    source, expected = dequantised(Held(stored)), plainly(stored, "a", form, shape)
    assert isinstance(source, Dequantised) and torch.equal(source.read("a"), expected)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert torch.equal(source.read("a", start, stop), expected[start:stop])


def test_pieces_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes_source, "PIECE", 4096)
    for form in (Form("nf4", True, 4096), Form("fp4", False, 32, "float32")):
        stored = four_bits("a", torch.randn(301, 67), form)
        source = dequantised(Held(stored))
        assert torch.equal(source.read("a"), plainly(stored, "a", form, (301, 67)))
        assert torch.equal(source.read("a", 60, 200), source.read("a")[60:200])
    stored = eight_bits("a.weight", torch.randn(301, 67))
    expected = stored["a.weight"] * stored["a.SCB"][:, None] * 7.874015718698502e-3
    assert torch.equal(dequantised(Held(stored)).read("a.weight", 3, 299), expected[3:299])


@pytest.mark.parametrize("shape", [(128,), (3, 4, 32)])
def test_other_numbers_of_axes(shape: tuple[int, ...]) -> None:
    stored = four_bits("a", torch.randn(shape), Form())
    source = dequantised(Held(stored))
    assert torch.equal(source.read("a"), plainly(stored, "a", Form(), shape))
    assert torch.equal(source.read("a", 1, 3), source.read("a")[1:3])


def test_scales_that_were_saved_in_sixteen_bits() -> None:
    form = Form("nf4", False, 64, "float16")
    stored = four_bits("a", torch.randn(8, 64), form)
    for end in ("absmax", "quant_map"):
        stored[f"a.{end}"] = stored[f"a.{end}"].half()
    expected = plainly({**stored, "a.absmax": stored["a.absmax"].float()}, "a", form, (8, 64))
    assert torch.equal(dequantised(Held(stored)).read("a"), expected)


def test_a_checkpoint_without_such_matrices_is_itself() -> None:
    source = Held({"a.weight": torch.zeros(2, 2, dtype=torch.int8), "b": torch.ones(3), "b.SCB": torch.ones(3)})
    assert dequantised(source) is source


def test_parts_in_other_files_under_a_framework_s_names(tmp_path: Path) -> None:
    """As a shard may end between a matrix and its scales."""
    matrix = torch.randn(40, 96)
    stored = {f"module.{name}": value for name, value in four_bits("a.weight", matrix, Form()).items()}
    scales = {name: value for name, value in stored.items() if "absmax" in name}
    norm = {"module.norm": torch.ones(3)}
    save_file(
        {**{n: v for n, v in stored.items() if n not in scales}, **norm}, tmp_path / "model-00001-of-00002.safetensors"
    )
    save_file(scales, tmp_path / "model-00002-of-00002.safetensors")
    source = open_checkpoint(tmp_path)
    assert set(source.infos) == {"a.weight", "norm"}
    info = source.infos["a.weight"]
    assert {file.name[6:11] for file in (info.file, *info.beside)} == {"00001", "00002"}
    expected = dequantised(Held(stored)).read("module.a.weight")
    assert torch.equal(source.read("a.weight"), expected)
    torch.save({**stored, **norm}, tmp_path / "pytorch_model.bin")
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert torch.equal(open_checkpoint(tmp_path).read("a.weight"), expected)


READ = """
import sys
from pathlib import Path
import torch
from export.source.checkpoint import open_checkpoint
from runtime_py.memory import peak_resident_bytes
source = open_checkpoint(Path(sys.argv[1]))
source.read("a", 0, 256)
before = peak_resident_bytes()
for start in range(0, 16384, 256):
    source.read("a", start, start + 256)
by_rows = peak_resident_bytes()
whole = source.read("a", 0, 8192)
print(by_rows - before >> 20, peak_resident_bytes() - before >> 20, whole.numel() * 2 >> 20)
"""


def test_memory_is_that_of_the_rows_and_of_one_piece(tmp_path: Path) -> None:
    """128 MiB of bfloat16, read 2 MiB at a time and then half of it at once."""
    tensors = four_bits("a", torch.randn(64, 4096), Form())
    told = bytes(tensors["a.quant_state.bitsandbytes__nf4"]).replace(b"[64, 4096]", b"[16384, 4096]")
    tensors["a.quant_state.bitsandbytes__nf4"] = torch.tensor(list(told), dtype=torch.uint8)
    tensors["a"] = tensors["a"].repeat(256, 1)
    for name in ("a.absmax", "a.nested_absmax"):
        tensors[name] = tensors[name].repeat(256)
    save_file(tensors, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", READ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    by_rows, at_once, size = map(int, done.stdout.split())
    assert size == 64 and by_rows < 30 and at_once < size + 30, done.stdout


def test_the_installed_library_agrees() -> None:
    """Where bitsandbytes is installed, on more matrices than the golden has."""
    pytest.importorskip("bitsandbytes")
    for seed, (kind, nested, size, dtype) in enumerate(
        (kind, nested, size, dtype)
        for kind in KINDS
        for nested in (True, False)
        for size in (32, 64, 512, 4096)
        for dtype in ("bfloat16", "float16", "float32")
    ):
        generator = torch.Generator().manual_seed(seed)
        shape = tuple(torch.randint(1, 300, (2,), generator=generator).tolist())
        matrix = torch.randn(shape, generator=generator)
        stored, expected = stored_and_read(matrix, Form(kind, nested, size, dtype))
        assert torch.equal(dequantised(Held(stored)).read("weight"), expected), (kind, nested, size, dtype, shape)
    stored, expected = stored_and_read(torch.randn(200, 333), Form("int8", False, 0, "float16"))
    source = dequantised(Held({f"a.{name}": value for name, value in stored.items()}))
    assert torch.equal(source.read("a.weight"), expected)
