"""Random checkpoints: the published layout, the exact tensors, reproducible bytes, sensible values."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.__main__ import main
from export.checkpoint.synthesize import SynthesisRequest, _encode, plan, synthesize
from export.families import registry
from export.families.published import variants
from export.modules.build import parameter_shapes
from export.source.checkpoint import open_checkpoint
from export.source.safetensors_writer import PlannedTensor, shards, write_file
from export.source.tensor_source import EmptySource
from runtime_py.errors import MachineError, UsageError


@pytest.mark.parametrize("variant", ["1.0", "2.0"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tiny_checkpoint_is_what_its_config_says(tmp_path: Path, variant: str, dtype: str) -> None:
    folder = tmp_path / "out"
    result = synthesize(SynthesisRequest("minicpm-v", "tiny", folder, variant, dtype, shard_bytes=600_000))
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    family, source = registry.recognise(folder), open_checkpoint(folder)
    spec = family.spec(registry.read_config(folder), source)
    assert spec.variant == variant
    weights = family.weight_map(spec, source)
    weights.check(parameter_shapes(spec))
    assert {info.dtype for info in source.infos.values()} == {dtype}
    assert result.tensors == len(source.infos)
    assert result.parameters == sum(math.prod(info.shape) for info in source.infos.values())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, hub_id) for name, family in registry.families().items() for hub_id in variants(family.published_table())],
)
def test_every_family_reads_what_is_written_for_it(tmp_path: Path, name: str, variant: str) -> None:
    result = synthesize(SynthesisRequest(name, "tiny", tmp_path / "out", variant))
    family = registry.recognise(result.folder)
    assert family.name == name
    source = family.open_source(result.folder)
    spec = family.spec(family.load_config(result.folder), source)
    family.weight_map(spec, source).check(parameter_shapes(spec))
    published = family.spec(family.published_config(variant, "tiny"), EmptySource())
    assert (spec.decoder, spec.vision, spec.connector) == (published.decoder, published.vision, published.connector)


@pytest.mark.parametrize("name", list(registry.families()))
def test_a_tiny_checkpoint_can_be_planned(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A rehearsal goes on with it: its positions hold a picture of the sizes that its settings allow."""
    folder = synthesize(SynthesisRequest(name, "tiny", tmp_path / "out")).folder
    for target in ("cpu", "android", "server-gpu"):
        status = main(["--model", name, "--weights", str(folder), "--target", target, "--dry-run"])
        assert status == 0, capsys.readouterr().err


def test_xverse_lies_in_its_three_parts(tmp_path: Path) -> None:
    folder = synthesize(SynthesisRequest("xverse-v", "tiny", tmp_path / "out")).folder
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "clip-vit/config.json",
        "clip-vit/model.safetensors",
        "xverse-llm/config.json",
        "xverse-llm/generation_config.json",
        "xverse-llm/model.safetensors",
        "adapters/adapter_and_lora.bin",
    }
    assert "vision_model.pre_layrnorm.weight" in load_file(folder / "clip-vit" / "model.safetensors")
    adapters = torch.load(folder / "adapters" / "adapter_and_lora.bin", weights_only=True)
    assert list(adapters) == ["model"]
    assert "llama_model.base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in adapters["model"]


def test_all_layers_store_the_real_rotary_frequencies(tmp_path: Path) -> None:
    synthesize(SynthesisRequest("cogvlm2", "tiny", tmp_path / "out"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    buffers = [value for name, value in tensors.items() if name.endswith("rotary_emb.inv_freq")]
    expected = (1.0 / 500000.0 ** (torch.arange(0, 32, 2).float() / 32)).bfloat16()
    assert len(buffers) == 2
    assert all(torch.equal(buffer, expected) for buffer in buffers)


def test_full_size_counts() -> None:
    """694 tensors and 3 434 965 792 parameters: two bytes each are the published shards less their headers."""
    family = registry.families()["minicpm-v"]
    for variant in ("1.0", "2.0"):
        spec = family.spec(family.published_config(variant, "full"), EmptySource())
        tensors = plan(spec, family.weight_map(spec, EmptySource()))
        assert len(tensors) == 694
        assert sum(math.prod(shape) for _, shape in tensors) == 3_434_965_792
        files = shards([PlannedTensor(name, "bfloat16", shape) for name, shape in tensors])
        assert len(files) == 2
        assert all(sum(tensor.nbytes for tensor in file) <= 5_000_000_000 for file in files)


def test_tensors_differ_and_have_the_scale_of_trained_ones(tmp_path: Path) -> None:
    """Every tensor differs from every other, norms lie near 1, matrices have deviation 1 / sqrt(inputs)."""
    synthesize(SynthesisRequest("minicpm-v", "tiny", tmp_path / "out", dtype="float32"))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    starts = {tuple(tensor.flatten()[:4].tolist()) for tensor in tensors.values()}
    assert len(starts) == len(tensors)
    matrix = tensors["llm.model.layers.0.mlp.down_proj.weight"]
    assert matrix.std().item() == pytest.approx(1 / math.sqrt(matrix.shape[1]), rel=0.05)
    assert torch.linalg.matrix_rank(matrix) == min(matrix.shape)
    norm = tensors["llm.model.norm.weight"]
    assert norm.mean().item() == pytest.approx(1, abs=0.05) and norm.std() > 0
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_seed_decides_the_bytes(tmp_path: Path) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize(SynthesisRequest("minicpm-v", "tiny", tmp_path / name, seed=seed))
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    ours = torch.frombuffer(bytearray(_encode(values, "bfloat16")), dtype=torch.bfloat16)
    assert torch.equal(ours, torch.from_numpy(values).bfloat16())


def test_what_cannot_be_synthesised_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for model, size, variant, output, message in (
        ("nothing", "tiny", "", "out", "no model that is known"),
        ("minicpm-v", "huge", "", "out", "no config"),
        ("minicpm-v", "tiny", "2.5", "out", "no config"),
        ("minicpm-v", "tiny", "", "full", "exists already"),
    ):
        with pytest.raises(UsageError, match=message):
            synthesize(SynthesisRequest(model, size, tmp_path / output, variant))
    for nameless in (Path(), Path("..")):
        with pytest.raises(UsageError, match="no name of its own"):
            synthesize(SynthesisRequest("minicpm-v", "tiny", nameless))
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write"):
        synthesize(SynthesisRequest("minicpm-v", "tiny", tmp_path / "file" / "out"))
    assert main(["synthesize", "--model", "nothing", "--size", "tiny", "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """The system refuses files over 1 MB, as a full disk would, while the second tensor or so is written."""
    program = (
        "import resource, sys; from export.__main__ import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
        "sys.exit(main(['synthesize', '--model', 'minicpm-v', '--size', 'tiny', '-o', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert result.returncode == 7 and "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    tensor = PlannedTensor("a", "float32", (2,))
    with pytest.raises(ValueError, match="gave 4 bytes, its shape and dtype make 8"):
        write_file(tmp_path / "a", [tensor], lambda _: iter([bytes(4)]))
    with pytest.raises(ValueError, match="given twice"):
        write_file(tmp_path / "a", [tensor, tensor], lambda _: iter([bytes(8)]))
