"""What a graph looks like to other tools: the checker, names of axes and nodes, and the outputs of its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.backends.onnx.conftest import Package, export
from runtime_py.contracts import DECODER, VISION


@pytest.mark.parametrize("case", ["first", "second", "packed"])
def test_every_graph_passes_the_checker_whole_and_names_what_it_holds(case: str, request: pytest.FixtureRequest) -> None:
    """The checker infers every shape too, and compares it with what the graph says."""
    package = request.getfixturevalue(case)
    graphs = sorted((package.folder / "onnx").glob("*.onnx"))
    assert len(graphs) == 4 + len(package.manifest["backends"]["onnx"]["further_graphs"])
    for path in graphs:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        described = {value.name for value in model.graph.value_info} | {value.name for value in model.graph.output}
        made = {name for node in model.graph.node for name in node.output if name}
        # what is added to a traced graph by hand has none, as the three values that find rows in the ids (`joined`)
        assert len(made - described) <= 4, (path.name, made - described)
        assert len({node.name for node in model.graph.node}) == len(model.graph.node)
        assert (model.producer_name, model.metadata_props[0].key) == ("edgeproof", "edgeproof.family")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["awaker2.5-vl", "cogvlm2", "minicpm-llama3-v", "omnilmm-12b", "qwen2-vl", "wemm", "xverse-v"]
)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_every_family_passes_the_checker(case: str, precision: str, tmp_path: Path) -> None:
    package = export(case, precision, tmp_path)
    for path in sorted((package.folder / "onnx").glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)


def test_axes_have_the_names_by_which_transformers_js_makes_a_cache(first: Package) -> None:
    session = onnxruntime.InferenceSession(str(first.folder / "onnx" / "decoder_model_merged.onnx"))
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes["past_key_values.0.key"][::2] == ["batch_size", "past_sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["inputs_embeds"][:2] == ["batch_size", "sequence_length"]


def test_the_scale_of_scores_is_not_the_attentions(first: Package) -> None:
    """With a scale of its own ONNX Runtime copies every head's keys before it multiplies one row with them."""
    model = onnx.load(str(first.folder / "onnx" / "decoder_model_merged.onnx"), load_external_data=False)
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    scales = {given.f for node in attentions for given in node.attribute if given.name == "scale"}
    assert attentions and scales == {1.0}


@pytest.mark.parametrize("stage", [VISION, DECODER])
def test_block_outputs_are_what_leaves_each_block(first: Package, stage: str, tmp_path: Path) -> None:
    names = first.manifest["backends"]["onnx"]["block_outputs"][stage]
    path = first.folder / first.manifest["backends"]["onnx"]["stages"][stage]["file"]
    model = onnx.load(str(path))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names.values())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    module = first.reference(stage)
    wanted: dict[str, torch.Tensor] = {}
    for block in names:
        module.get_submodule(block).register_forward_hook(
            lambda _m, _i, out, block=block: wanted.__setitem__(block, out if isinstance(out, torch.Tensor) else out[0])
        )
    golden, spec = first.golden, first.spec.decoder
    with torch.no_grad():
        if stage == VISION:
            feeds = {"pixel_values": golden["pixel_values"]}
            module(torch.from_numpy(golden["pixel_values"]))
        else:
            embeds = golden["inputs_embeds"]
            tokens = embeds.shape[1]
            past = torch.zeros(1, spec.kv_heads, 0, spec.head_dim)
            feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, tokens), np.int64)}
            feeds |= {"position_ids": np.arange(tokens)[None], "num_logits_to_keep": np.array(1)}
            read = {**feeds, "num_logits_to_keep": np.array([-1])}
            module(*(torch.from_numpy(value) for value in read.values()), [(past, past)] * spec.layers)
            for layer in range(spec.layers):
                feeds |= {f"past_key_values.{layer}.{half}": past.numpy() for half in ("key", "value")}
    assert sorted(wanted) == sorted(names)
    for block, output in zip(names, session.run(list(names.values()), feeds), strict=True):
        np.testing.assert_allclose(output, wanted[block].numpy(), atol=2e-5, err_msg=block)
