"""What the adapted checkpoint itself says about its experts comes before the settings, and other routing is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export.families.awaker2_5_vl.family import FAMILY, GATE_EPS
from export.modules.decoders.specs import RoutedLora
from export.specs import ModelSpec
from runtime_py.errors import UnsupportedModelError

GOLDEN = Path(__file__).parents[3] / "parity_tests" / "goldens" / "awaker2.5-vl"


def spec_with(folder: Path, file: str, **changes: object) -> ModelSpec:
    """The golden's spec with some keys of one of its JSON files changed."""
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.npz"))
    value = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**value, **changes}))
    return FAMILY.spec(FAMILY.load_config(folder), FAMILY.open_source(folder))


def test_rank_and_experts_are_read_from_the_tensors(tmp_path: Path):
    adapter = spec_with(tmp_path / "case", "moe_config.json", num_experts=7, r=64).decoder.adapter
    assert isinstance(adapter, RoutedLora)
    assert (adapter.experts, adapter.rank) == (4, 3)


def test_the_gates_have_an_epsilon_of_their_own(tmp_path: Path):
    spec = spec_with(tmp_path / "case", "config.json", rms_norm_eps=1e-3)
    assert isinstance(spec.decoder.adapter, RoutedLora)
    assert (spec.decoder.norm_eps, spec.decoder.adapter.norm_eps) == (1e-3, GATE_EPS)


@pytest.mark.parametrize(("name", "value"), [("topk", 2), ("g_enable", False), ("gates_tmp", 0.5), ("token", True)])
def test_other_routing_is_refused(name: str, value: object, tmp_path: Path):
    with pytest.raises(UnsupportedModelError, match=name):
        spec_with(tmp_path / "case", "moe_config.json", **{name: value})


def test_mean_and_deviation_come_from_the_preprocessor(tmp_path: Path):
    spec = spec_with(tmp_path / "case", "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert spec.runtime["mean"] == [0.5, 0.5, 0.5]
