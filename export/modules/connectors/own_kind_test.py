"""A family outside the checkout with a connector of its own kind: planned, exported, proven, and built for a phone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.backends.mlc.blocks.conftest import assert_close, build, random_weights
from export.backends.mlc.blocks.linear import Layers
from export.backends.mlc.support import most_patches, overview_rows, unsupported
from export.checkpoint.opened import published_specs
from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.modules.connectors.base import OPEN_ROWS, ConnectorSpec
from export.modules.kernels import Kernels
from export.modules.kind import named_class
from export.new_family_test import family_outside
from export.pipeline import export
from export.request import ExportRequest
from export.stages import contracts
from parity_tests.check.verifier import PackageVerifier
from runtime_py.contracts import CONNECTOR
from runtime_py.errors import UnsupportedModelError

NAME = "shuffled"

CONNECTOR_FILE = '''
from dataclasses import dataclass
from export.modules.connectors.base import ConnectorSpec

@dataclass(frozen=True)
class PixelShuffleSpec(ConnectorSpec):
    """Squares of factor x factor patches joined into one row, and one linear (Idefics3)."""

    grid: int
    factor: int
    module = "shuffled.modules:PixelShuffle"
    block = "shuffled.blocks:PixelShuffle"

    @property
    def rows(self):
        return (self.grid // self.factor) ** 2

    @property
    def patches_per_row(self):
        return self.factor**2
'''

MODULES_FILE = """
from torch import nn
from export.modules.kernels import Role

class PixelShuffle(nn.Module):
    def __init__(self, spec, kernels, prefix="connector"):
        super().__init__()
        self.spec = spec
        self.proj = kernels.linear(f"{prefix}.proj", spec.vision_width * spec.factor**2, spec.width, False, Role.CONNECTOR)

    def forward(self, vision_features):
        images, _, width = vision_features.shape
        factor, side = self.spec.factor, self.spec.grid // self.spec.factor
        x = vision_features.reshape(images, side, factor, side, factor, width).permute(0, 1, 3, 2, 4, 5)
        return self.proj(x.reshape(images, side * side, factor * factor * width))
"""

BLOCKS_FILE = """
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op

class PixelShuffle(nn.Module):
    def __init__(self, spec, layers, prefix="connector"):
        self.spec = spec
        self.proj = layers.linear(f"{prefix}.proj", spec.vision_width * spec.factor**2, spec.width, False)

    def forward(self, features, sides):
        factor, side, width = self.spec.factor, self.spec.grid // self.spec.factor, self.spec.vision_width
        x = op.permute_dims(op.reshape(features, (1, side, factor, side, factor, width)), axes=[0, 1, 3, 2, 4, 5])
        return self.proj(op.reshape(x, (1, side * side, factor * factor * width)))
"""

FAMILY_FILE = """
from dataclasses import replace
from export.families.omnilmm_12b.family import OmniLMM12B
from export.families.tensors import PublishedTensors
from export.modules.decoders.llama_weights import llama_rules
from export.modules.vision.timm_weights import timm_rules
from export.families.omnilmm_12b.weights import TOWER, unused_block
from export.source.weight_map import take
from shuffled.connector import PixelShuffleSpec

def rules(spec):
    joined = spec.connector.vision_width * spec.connector.factor**2
    return [
        *timm_rules(spec.vision, TOWER, split_bias=True),
        take("connector.proj.weight", "model.proj.weight", (spec.connector.width, joined)),
        *llama_rules(spec.decoder),
    ]

class Shuffled(OmniLMM12B):
    tensors = PublishedTensors(rules, unread=unused_block)

    def spec(self, config, source):
        whole = super().spec(config, source)
        connector = PixelShuffleSpec(whole.vision.width, whole.decoder.hidden, whole.vision.grid[0], 2)
        runtime = {**whole.runtime, "queries": connector.rows}
        return replace(whole, connector=connector, image_rows=connector.rows, runtime=runtime)

FAMILY = Shuffled()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The distribution, installed for this module; its package's name."""
    modules = {"connector": CONNECTOR_FILE, "modules": MODULES_FILE, "blocks": BLOCKS_FILE, "family": FAMILY_FILE}
    with family_outside(NAME, "omnilmm-12b", modules, tmp_path_factory.mktemp("own_kind")) as name:
        yield name


@pytest.fixture
def checkpoint(package: str, tmp_path: Path) -> Path:
    return synthesize(SynthesisRequest(package, "tiny", tmp_path / "tiny", "", "float32")).folder


def spec_of(package: str, **changes: Any) -> ConnectorSpec:
    made: ConnectorSpec = importlib.import_module(f"{package}.connector").PixelShuffleSpec(**changes)
    return made


def test_it_is_exported_and_agrees_with_the_reference(checkpoint: Path, tmp_path: Path) -> None:
    """The export itself compares the package with the module, which the next test compares with what it should be."""
    request = ExportRequest(str(checkpoint), "cpu", precision="fp32", output=tmp_path / "out", without_tokenizer=True)
    made = json.loads((export(request, PackageVerifier()) / "manifest.json").read_text())
    assert made["verification"]["verdict"] == "pass"
    assert made["contracts"][CONNECTOR]["outputs"][0]["shape"] == ["images", 16, 256]


@pytest.mark.parametrize(("grid", "factor"), [(4, 2), (9, 3)])
def test_module_and_block_agree_with_the_sum_over_patches(package: str, grid: int, factor: int) -> None:
    from tvm.relax.frontend import nn

    spec = spec_of(package, vision_width=6, width=10, grid=grid, factor=factor)
    module = named_class(spec, spec.module)(spec, Kernels())
    weights = random_weights(module)
    features = np.random.default_rng(1).standard_normal((1, grid * grid, 6)).astype(np.float32)
    expected = np.zeros((1, (grid // factor) ** 2, 10))
    for row, column in np.ndindex(grid, grid):
        place = row % factor * factor + column % factor
        part = weights["proj.weight"][:, place * 6 : (place + 1) * 6].astype(np.float64)
        expected[0, row // factor * (grid // factor) + column // factor] += part @ features[0, row * grid + column]
    assert_close(module(torch.from_numpy(features)).detach().numpy(), expected)
    block = named_class(spec, spec.block)(spec, Layers({}, "float32"))
    arguments = {"features": nn.spec.Tensor([1, grid * grid, 6], "float32")}
    built = build(block, {"run": (lambda features: block(features, {}), arguments)}, weights)
    assert_close(built("run", features), expected)


def test_backends_ask_the_kind_and_not_a_list(package: str) -> None:
    spec = dict((family.name, spec) for family, spec in published_specs())["wemm"]
    own = spec_of(package, vision_width=spec.vision.width, width=spec.decoder.hidden, grid=32, factor=2)
    shuffled = replace(spec, connector=own)
    assert overview_rows(shuffled) == 256 and most_patches(shuffled, 4096) == (spec.image.overview // spec.image.patch) ** 2
    assert contracts(shuffled)[CONNECTOR].outputs[0].shape == ("images", 256, spec.decoder.hidden)
    assert unsupported(shuffled, True) == []


@dataclass(frozen=True)
class Bare(ConnectorSpec):
    """One that names what is not there."""

    module = "json:NoSuchClass"

    @property
    def rows(self) -> str:
        return OPEN_ROWS


def test_what_a_kind_leaves_out_is_said() -> None:
    bare = Bare(8, 16)
    spec = replace(next(iter(published_specs()))[1], connector=bare)
    assert unsupported(spec, False) == ["its connector, Bare, has no Relax block"]
    for reference in (bare.module, "no_such_package.modules:Bare", "json", ""):
        with pytest.raises(UnsupportedModelError, match="Bare names") as caught:
            named_class(bare, reference)
        assert "package.module:Class" in caught.value.expected
    with pytest.raises(NotImplementedError, match="Bare has open rows"):
        bare.rows_of((4, 4))
