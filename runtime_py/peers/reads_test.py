from __future__ import annotations

import pytest

from runtime_py.peers.llama_cpp import reads_of
from runtime_py.peers.reads import MATRICES, Reads, of_package
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
    other = manifest("ort_int4_b32")
    other["assignments"]["decoder.layers.0.mlp.expert"] = {"storage": "int4", "grid": "ort_int4_b32"}  # type: ignore[index]
    for made in (other, manifest("a_grid"), manifest("ort_int4_b32", cache="a_kind"), {}):
        assert of_package(made, SHAPE) is None


def test_llama_cpp_reads_its_blocks() -> None:
    assert reads_of(SHAPE) == Reads((SHAPE.weights - HEAD) * 18 / 32 + HEAD * 34 / 32, 2 * 3 * 2 * 16 * 2)
