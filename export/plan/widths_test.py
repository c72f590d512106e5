"""True bits per weight, and what a plan says of blocks that do not divide a layer's columns."""

from __future__ import annotations

import pytest

from export.backends.base import BuildOptions
from export.backends.registry import backend_named
from export.plan.widths import remarks, whole, widths
from export.quantisation.spec import Assignment, LayerShape, Storage
from targets.registry import target_named

COLUMNS = {"decoder.layers.0.attention.out": 576, "decoder.layers.0.mlp.down": 1536, "decoder.head": 576}


def assigned(backend: str, block: int | str) -> dict[str, Assignment]:
    """Three layers of a 576-wide decoder as a backend stores them."""
    layers = [LayerShape(name, "head" if name.endswith("head") else "decoder", 576, c) for name, c in COLUMNS.items()]
    options = BuildOptions(target_named("desktop-gpu"), "int4", target_named("desktop-gpu").limits, {"block_size": block})
    if backend == "onnx":
        from export.backends.onnx.choices import assign, choices

        return {layer.name: assign(layer, choices(options)) for layer in layers}
    from export.backends.tensorrt.storages import assign as assign_engine

    return {layer.name: assign_engine(layer, options) for layer in layers}


@pytest.mark.parametrize(("block", "bits"), [(32, 4.5), (64, 4.25), ("auto", 4.25 - 0.125 * 1536 / 2688)])
def test_bits_per_weight_of_blocks_that_divide(block: int | str, bits: float) -> None:
    rows = assigned("onnx", block)
    assert widths(rows)["decoder"].bits == pytest.approx(bits)
    assert whole(rows).padding == 0
    assert list(remarks("onnx", "int4", rows)) == []


def test_padded_blocks_are_told_with_the_length_that_fits() -> None:
    rows = assigned("onnx", 128)
    (said,) = remarks("onnx", "int4", rows)
    assert "2 int4 layers of 576 columns are padded to whole blocks, 10 % of their bytes" in said
    assert "--block-size 64 divides them" in said
    # of 576 rows, 64 columns more, in 4 bits each, and half of a block's scale
    assert whole(rows).padding == widths(rows)["decoder"].padding == 2 * 576 * (64 * 4 // 8 + 1)
    padded = [rows["decoder.head"], rows["decoder.layers.0.attention.out"]]
    assert (
        whole({a.layer.name: a for a in padded}).bits
        > whole({a.layer.name: a for a in padded[:0]} | assigned("onnx", 64)).bits
    )


def test_columns_that_no_length_divides_are_told_in_order_with_what_pads_least() -> None:
    layers = [LayerShape(name, "decoder", 8, columns) for name, columns in (("decoder.b", 600), ("decoder.a", 300))]
    for backend, advice in (("onnx", "--block-size auto pads least"), ("mlc", "no length that this backend has divides")):
        rows = {a.name: Assignment(a, Storage.INT4, "ort_int4_b128") for a in layers}
        (said,) = remarks(backend, "int4", rows)
        assert "2 int4 layers of 300, 600 columns" in said and said.count(advice) == 1
    wide = {a.name: Assignment(a, Storage.FP16, undivided=True) for a in layers}
    assert "2 layers of 300, 600 columns, 100 % of the weights" in "".join(remarks("mlc", "int4", wide))


def test_layers_that_an_engine_keeps_wide_are_told_with_the_true_bits() -> None:
    rows = assigned("tensorrt", 128)
    (said,) = remarks("tensorrt", "int4", rows)
    assert "2 layers of 576 columns, 43 % of the weights, stay in fp16" in said
    assert "--block-size 64 divides them" in said
    assert whole(rows).bits == pytest.approx((2 * 576 * 16 + 1536 * 4.125) / 2688)
    assert list(remarks("tensorrt", "fp16", rows)) == []
    assert list(remarks("tensorrt", "int4", assigned("tensorrt", "auto"))) == []


def test_a_matrix_that_two_layers_share_counts_once() -> None:
    backend, target = backend_named("onnx"), target_named("cpu")
    from export.families.registry import families
    from export.source.tensor_source import EmptySource

    family = families()["qwen2-vl"]
    spec = family.spec(family.published_config("", "full"), EmptySource())
    rows = backend.exporter().assignments(spec, BuildOptions(target, "int4", target.limits))
    shared = {name: a for name, a in rows.items() if a.shares}
    counted = sum(a.layer.rows * a.layer.columns for a in rows.values() if not a.shares)
    assert whole(rows).weights == counted
    assert whole(shared).weights == 0
