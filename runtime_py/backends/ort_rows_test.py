"""Whether sequences may share a call of a graph."""

from __future__ import annotations

from pathlib import Path

from runtime_py.backends.ort_rows import rounds_over_rows


def test_a_graph_that_rounds_all_rows_by_one_scale_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a MatMulNBits GroupQueryAttention")
    (tmp_path / "b.onnx").write_bytes(b"\x08\x0a\x15DynamicQuantizeLinear")
    assert [rounds_over_rows(tmp_path / name) for name in ("a.onnx", "b.onnx")] == [False, True]
