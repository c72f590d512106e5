"""Libraries compiled at once: the first that fails is named, and no compiler outlives the call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from export.backends.mlc.compile_process import LibraryRequest, compile_together
from export.backends.mlc.overview import Overview
from export.backends.mlc.prediction import compiled_together, compiling_bytes
from export.backends.mlc.schemes import SCHEMES
from export.families.registry import families
from export.source.tensor_source import EmptySource
from export.specs import ModelSpec
from runtime_py.errors import UnsupportedModelError
from targets.base import Limits


def full_spec() -> ModelSpec:
    record = families()["minicpm-v"]
    return record.spec(record.published_config("", "full"), EmptySource())


def test_both_libraries_are_compiled_at_once_only_where_there_is_memory_for_both() -> None:
    spec = full_spec()
    enough = compiling_bytes(spec, 2)
    assert compiled_together(spec, ["android", "x86_64"], enough) == [["android", "x86_64"]]
    assert compiled_together(spec, ["android", "x86_64"], enough - 1) == [["android"], ["x86_64"]]
    assert compiled_together(spec, ["x86_64"], enough - 1) == [["x86_64"]]
    assert compiling_bytes(spec, 1) < enough < 2 * compiling_bytes(spec, 1)


def test_the_first_that_fails_is_named_and_no_compiler_is_left(tmp_path: Path) -> None:
    spec = full_spec()
    narrow = replace(spec, decoder=replace(spec.decoder, head_dim=16, rope=replace(spec.decoder.rope, dim=16)))
    overview = Overview(None, (32, 32), {})
    request = LibraryRequest("narrow_heads", "narrow", narrow, {}, SCHEMES["q0f16"], Limits(64, 16), overview, ())
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(UnsupportedModelError, match="no android library: attention heads of 16 channels"):
        compile_together(request, {"android": tmp_path / "a.tar", "ios": tmp_path / "b.tar"})
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not list(tmp_path.iterdir())
