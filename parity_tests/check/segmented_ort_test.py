"""Graphs run in pieces say what the whole graphs say, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.check.package_questions import questions
from parity_tests.check.segmented_ort import SegmentedOrtBackend
from parity_tests.judging.probes import Recording, record
from parity_tests.localize.onnx_blocks import ExactOrtBackend, set_exact
from runtime_py import package as packages
from runtime_py import tokenizer as tokenizers
from runtime_py.backends.base import Backend
from runtime_py.backends.ort import OrtBackend
from runtime_py.model import open_processor

STEPS = 3
PIECE_BYTES = 60_000


@pytest.fixture(scope="module", params=["int4", "fp32"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from export.pipeline import export
    from export.request import ExportRequest

    out = tmp_path_factory.mktemp("segmented") / "out"
    return export(
        ExportRequest("minicpm-v", "cpu", weights="demo", precision=request.param, output=out, skip_verify=True), None
    )


def said(backend: Backend, folder: Path) -> Recording:
    opened = packages.read(folder)
    processor = open_processor(opened, tokenizers.load(folder))
    asked = questions(processor, 1, opened.limits.context, STEPS)[0]
    return record(backend, processor, opened.limits, asked, STEPS)


def manifest(folder: Path) -> Mapping[str, Any]:
    return packages.read(folder).manifest


def test_pieces_are_many_and_say_the_same(package: Path) -> None:
    pieces = SegmentedOrtBackend(package, manifest(package), piece_bytes=PIECE_BYTES)
    actual = said(pieces, package).flattened()
    expected = said(OrtBackend(package, manifest(package)), package).flattened()
    assert len(pieces._graph("decoder")[1]) >= 4
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5 * max(1.0, float(np.abs(array).max())), err_msg=name)


def test_every_weight_lies_in_its_piece(package: Path) -> None:
    backend = SegmentedOrtBackend(package, manifest(package), piece_bytes=PIECE_BYTES)
    model, pieces = backend._graph("decoder")
    assert sorted(index for piece in pieces for index in piece.nodes) == list(range(len(model.graph.node)))
    produced: set[str] = {value.name for value in model.graph.input}
    for piece in pieces:
        assert set(piece.takes) <= produced
        produced |= set(piece.gives)
    assert {value.name for value in model.graph.output} <= produced


def test_pieces_in_float32_say_what_the_whole_says(package: Path) -> None:
    actual = said(SegmentedOrtBackend(package, manifest(package), set_exact, PIECE_BYTES), package).flattened()
    expected = said(ExactOrtBackend(package, manifest(package)), package).flattened()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5 * max(1.0, float(np.abs(array).max())), err_msg=name)
