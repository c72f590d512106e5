"""Rows of a prompt by kind: equal totals, no row above the limit, and the right rows at layers that get some of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.conftest import RandomWeights, decoder_call
from calibrate.request import CalibrationRequest
from calibrate.run import plan
from calibrate.samples.data import Prompt
from calibrate.samples.prompts import prompts_of
from calibrate.samples.row_weights import ANSWER, IMAGE, MOST, TEXT, RowWeights, row_kinds
from calibrate.statistics.capture import decoder_calls
from calibrate.statistics.moments import Moment
from calibrate.statistics.stage_stream import StageStream
from export.modules.build import build_stage
from export.modules.decoders.specs import VisualExperts
from export.modules.kernels import Kernels
from export.specs import ModelSpec
from runtime_py.preprocess.base import Layout


def prompt(kinds: str) -> Prompt:
    """``i`` image row, ``t`` text, ``a`` a token of the answer."""
    rows = np.array([kind == "i" for kind in kinds])
    return Prompt((), Layout(np.zeros((1, len(kinds)), np.int64), rows, {}), kinds.count("a"))


def test_an_answer_is_read_one_token_ahead() -> None:
    assert row_kinds(prompt("tiitaa")).tolist() == [TEXT, IMAGE, IMAGE, ANSWER, ANSWER, ANSWER]
    assert row_kinds(prompt("tt")).tolist() == [TEXT, ANSWER], "without an answer its first token is read at the last"


def test_kinds_count_the_same_in_total() -> None:
    prompts = [prompt("tiiiiiitta"), prompt("titaaa"), prompt("ttaa")]
    weights = RowWeights(prompts, [{}] * 3, {})
    rows, kinds = torch.cat(weights.rows), torch.cat([row_kinds(one) for one in prompts])
    totals = [float(rows[kinds == kind].sum()) for kind in (IMAGE, TEXT, ANSWER)]
    assert totals == pytest.approx([20 / 3] * 3)
    assert weights.of(1, "decoder.layers.0.attention.qkv", 6) is weights.rows[1]
    head = weights.of(1, "decoder.head", 6)
    assert head is not None
    assert head.tolist() == pytest.approx((weights.rows[1] * torch.tensor([1, 0, 1, 1, 1, 1])).tolist())


def test_no_row_counts_more_than_so_many_others() -> None:
    rows = RowWeights([prompt("t" + 500 * "i" + "tt")], [{}], {}).rows[0]
    assert float(rows[1] * MOST) == pytest.approx(float(rows[-1]))
    assert float(rows.mean()) == pytest.approx(1)
    alone = RowWeights([prompt("tttt")], [{}], {}).rows[0]
    assert torch.isfinite(alone).all()


def test_moments_hold_every_layers_own_rows(spec: ModelSpec) -> None:
    """In every family, against hooks on the whole decoder that weigh the rows by the routing of the call."""
    call = decoder_call(spec)
    rows = np.zeros(12, bool)
    rows[2:6] = True
    weights = RowWeights(
        [Prompt((), Layout(np.zeros((1, 12), np.int64), rows, {}), 3)], [call], spec.decoder.layer_kind.layer_rows
    )
    parameters = RandomWeights(spec)
    moments: dict[str, Moment] = {}
    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    stream = StageStream("decoder", module, parameters, lambda _: True, lambda _, m, run: moments.update(m), weights)
    stream.run([call], outputs=False)

    seen: dict[str, torch.Tensor] = {}
    other = build_stage(spec, "decoder", Kernels())
    hooks = {name: part for name, part in other.named_modules() if f"decoder.{name}" in moments}
    for name, part in hooks.items():
        part.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].reshape(-1, x[0].shape[-1])}))
    with torch.no_grad():
        held = {name: parameters.tensor(f"decoder.{name}") for name, _ in other.named_parameters()}
        torch.func.functional_call(other, held, (), call)
    image, experts = torch.arange(2, 6), isinstance(spec.decoder.adapter, VisualExperts)
    for name, inputs in seen.items():
        wanted = weights.rows[0]
        if name == "head":
            wanted = weights.head_rows[0]
        elif experts and "language" in name:
            wanted = wanted[torch.tensor([0, 1, *range(6, 12)])]
        elif len(inputs) == 4:
            wanted = wanted[image]
        elif len(inputs) == 1:
            wanted = torch.ones(1)
        torch.testing.assert_close(moments[f"decoder.{name}"].matrix, (inputs * wanted[:, None]).T @ inputs, msg=name)


def test_a_demos_answers_weigh_as_much_as_its_picture() -> None:
    request = CalibrationRequest("minicpm-v", "cpu", "gptq", Path("unused"), weights="demo", samples=3)
    checkpoint = plan(request).checkpoint
    assert checkpoint.weights is not None
    processor, prompts = prompts_of(request, checkpoint)
    features = [np.zeros((int(one.layout.image_rows.sum()), checkpoint.spec.decoder.hidden), np.float32) for one in prompts]
    calls = decoder_calls(checkpoint.spec, checkpoint.weights, prompts, processor, features)
    weights = RowWeights(prompts, calls, checkpoint.spec.decoder.layer_kind.layer_rows)
    totals = [0.0, 0.0, 0.0]
    for rows, one in zip(weights.rows, prompts, strict=True):
        for kind in (IMAGE, TEXT, ANSWER):
            totals[kind] += float(rows[row_kinds(one) == kind].sum())
    assert totals[IMAGE] == pytest.approx(totals[ANSWER])
    assert totals[IMAGE] == pytest.approx(totals[TEXT])
