"""A decoder library of an adapter that a family outside the checkout brings, and that reads no inputs of its own.

Its checkpoint has the names of PEFT, which a family must say it reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.checkpoint.synthesize import SynthesisRequest, synthesize
from export.new_family_test import family_outside
from export.pipeline import export
from export.request import ExportRequest
from parity_tests.check.verifier import PackageVerifier
from runtime_py.backends.records import DECODER_LIBRARY

NAME = "lowrank"

ADAPTER_FILE = '''
from dataclasses import dataclass
from export.modules.decoders.base import AdapterSpec

@dataclass(frozen=True)
class LowRankOut(AdapterSpec):
    """A low-rank delta on the projection behind attention, of every row: y = W x + B A x."""

    rank: int
    module = "lowrank.modules:LowRankDecoder"
'''

MODULES_FILE = """
from torch import nn
from export.modules.decoders.llama import Decoder, LayerParts
from export.modules.kernels import Role

class Out(nn.Module):
    def __init__(self, name, spec, kernels, width):
        super().__init__()
        self.base = kernels.linear(f"{name}.base", width, spec.hidden, False, Role.DECODER)
        self.narrow = kernels.linear(f"{name}.narrow", width, spec.adapter.rank, False, Role.ADAPTER)
        self.wide = kernels.linear(f"{name}.wide", spec.adapter.rank, spec.hidden, False, Role.ADAPTER)

    def forward(self, x):
        return self.base(x) + self.wide(self.narrow(x))

class Parts(LayerParts):
    def out(self, name):
        return Out(name, self.spec, self.kernels, self.query_width)

class LowRankDecoder(Decoder):
    parts = Parts
"""

FAMILY_FILE = """
from dataclasses import replace
from export.families.omnilmm_12b.family import OmniLMM12B
from export.families.omnilmm_12b.weights import rules, unused_block
from export.families.tensors import PublishedTensors
from export.source.checkpoint import open_checkpoint
from export.source.weight_map import take
from lowrank.adapter import LowRankOut

def adapted(spec):
    decoder, rank = spec.decoder, spec.decoder.adapter.rank
    width = decoder.heads * decoder.head_dim
    for rule in rules(spec):
        plain = rule.target.startswith("decoder.") and rule.target.endswith("attention.out.weight")
        yield replace(rule, target=rule.target.replace("out.weight", "out.base.weight")) if plain else rule
    for i in range(decoder.layers):
        ours, theirs = f"decoder.layers.{i}.attention.out", f"model.layers.{i}.self_attn.o_proj"
        yield take(f"{ours}.narrow.weight", f"{theirs}.lora_A.weight", (rank, width))
        yield take(f"{ours}.wide.weight", f"{theirs}.lora_B.weight", (decoder.hidden, rank))

class LowRank(OmniLMM12B):
    tensors = PublishedTensors(lambda spec: list(adapted(spec)), unread=unused_block)

    def spec(self, config, source):
        whole = super().spec(config, source)
        return replace(whole, decoder=replace(whole.decoder, adapter=LowRankOut(32)))

    def open_source(self, folder, stated=None):
        return open_checkpoint(folder, adapters=True)

FAMILY = LowRank()
"""


@pytest.mark.slow
def test_its_library_passes_the_check_beside_the_graph(tmp_path: Path) -> None:
    modules = {"adapter": ADAPTER_FILE, "modules": MODULES_FILE, "family": FAMILY_FILE}
    with family_outside(NAME, "omnilmm-12b", modules, tmp_path / "outside") as name:
        folder = synthesize(SynthesisRequest(name, "tiny", tmp_path / "tiny", "", "float32")).folder
        asked = {"decoder_library": True}
        request = ExportRequest(str(folder), "cpu", output=tmp_path / "out", without_tokenizer=True, options=asked)
        package = export(request, PackageVerifier())
        made = json.loads((package / "manifest.json").read_text())
    assert made["verification"]["verdict"] == "pass"
    libraries = made["backends"]["onnx"][DECODER_LIBRARY]["libraries"]
    assert libraries and all((package / path).is_file() for path in libraries.values())
    held = json.loads((package / made["backends"]["onnx"][DECODER_LIBRARY]["index"]).read_text())["parameters"]
    assert sum(".attention.out.narrow" in name for name, *_ in held) > 0
