from __future__ import annotations

import pytest

from export.quantisation.grids import GRIDS
from runtime_py.peers.llama_cpp import reads_of
from runtime_py.peers.reads import MATRICES, Reads, of_package, stored_bits
from runtime_py.peers.shape import DecoderShape

SHAPE = DecoderShape(64, 96, 3, 4, 2, 512)
HEAD = 512 * 64


def manifest(grid: str, storage: str = "int4", head: str = "", **block: object) -> dict[str, object]:
    rows = {f"decoder.layers.{layer}.{name}": {"storage": storage, "grid": grid} for layer in range(3) for name in MATRICES}
    rows["decoder.head"] = {"storage": "int8" if head else storage, "grid": head or grid}
    rows["vision_encoder.blocks.0.attention.qkv"] = {"storage": "fp16", "grid": ""}
    return {"assignments": rows, "backends": {"onnx": {"cache": "float16", **block}}}


@pytest.mark.parametrize(
    ("made", "weights", "position"),
    [
        (manifest("ort_int4_b128"), SHAPE.weights * 4.125 / 8, 2),
        (manifest("ort_int4_asym_b32", cache={"file": "f", "dtype": "int8"}), SHAPE.weights * 4.625 / 8, 1),
        (manifest("", "fp16", cache="float32"), SHAPE.weights * 2, 4),
        (manifest("ort_int4_b32", head="ort_int8_b32"), (SHAPE.weights - HEAD) * 4.5 / 8 + HEAD * 8.5 / 8, 2),
        ({**manifest("q4f16_1"), "backends": {"mlc": {"dtype": "float16"}}}, SHAPE.weights * 4.5 / 8, 2),
    ],
)
def test_a_step_reads_the_matrices_as_they_are_stored(made: dict[str, object], weights: float, position: int) -> None:
    reads = of_package(made, SHAPE)
    assert reads is not None and reads.weights == pytest.approx(weights)
    assert reads.position == 2 * 3 * 2 * 16 * position
    assert reads.of_step(10, 3) == reads.weights + 12 * reads.position


def test_what_is_not_known_is_not_guessed() -> None:
    for made in (manifest("a_grid"), manifest("", "a_storage"), manifest("ort_int4_b32", cache="a_kind"), {}):
        assert of_package(made, SHAPE) is None


@pytest.mark.parametrize("other", ["decoder.layers.0.mlp.expert", "decoder.layers.3.mlp.down", "decoder.tail"])
def test_a_matrix_that_the_shape_does_not_have_leaves_the_sum_unknown(other: str) -> None:
    made = manifest("ort_int4_b32")
    made["assignments"][other] = {"storage": "int4", "grid": "ort_int4_b32"}  # type: ignore[index]
    assert of_package(made, SHAPE) is None


@pytest.mark.parametrize("missing", ["decoder.head", *(f"decoder.layers.1.{name}" for name in MATRICES)])
def test_a_matrix_that_the_manifest_does_not_name_does_too(missing: str) -> None:
    made = manifest("ort_int4_b32")
    del made["assignments"][missing]  # type: ignore[attr-defined]
    assert of_package(made, SHAPE) is None


NEVER_OF_A_DECODER = ("ort_int8_row", "ort_int8_token", "ort_int8_rotated", "ort_gather_", "trt_")
"""What begins the names of grids of towers and tables, and of engines, which no peer is held against."""


@pytest.mark.parametrize("name", GRIDS)
def test_a_weight_has_the_bits_that_its_grid_stores(name: str) -> None:
    torch = pytest.importorskip("torch")
    rows = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    grid = GRIDS[name]
    made = grid.quantise(rows)
    stored = made.codes.numel() * grid.bits + made.scales.numel() * made.scales.element_size() * 8
    if made.zero_points is not None:
        stored += made.zero_points.numel() * grid.bits
    known = stored_bits(name, "int4")
    assert (known is None) == name.startswith(NEVER_OF_A_DECODER)
    assert known is None or known * rows.numel() == stored


def test_llama_cpp_reads_its_blocks() -> None:
    assert reads_of(SHAPE) == Reads((SHAPE.weights - HEAD) * 18 / 32 + HEAD * 34 / 32, 2 * 3 * 2 * 16 * 2)
