"""Streaming block by block gives the moments and outputs of the whole model, in every family."""

from collections.abc import Mapping

import torch

from calibrate.conftest import RandomWeights, decoder_call
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.moments import Moment
from calibrate.statistics.stage_stream import StageStream
from export.modules.build import build_stage
from export.modules.kernels import Kernels, Linear
from export.specs import ModelSpec


def whole(spec: ModelSpec, weights: RandomWeights, calls: list) -> dict[str, Moment]:  # type: ignore[type-arg]
    """Moments by hooks on the decoder with all weights in memory."""
    module = build_stage(spec, "decoder", Kernels())
    moments = {}
    for name, part in module.named_modules():
        if isinstance(part, Linear):
            moments[f"decoder.{name}"] = moment = Moment(part.weight.shape[1])
            part.register_forward_pre_hook(lambda _, inputs, moment=moment: moment.add(inputs[0]))
    parameters = {name: weights.tensor(f"decoder.{name}") for name, _ in module.named_parameters()}
    with torch.no_grad():
        for call in calls:
            torch.func.functional_call(module, parameters, (), call)
    return moments


def test_moments_are_those_of_the_whole_model(spec: ModelSpec) -> None:
    weights = RandomWeights(spec)
    calls = [decoder_call(spec, tokens, seed) for tokens, seed in ((12, 1), (9, 2))]
    wanted = whole(spec, weights, calls)
    streamed: dict[str, Moment] = {}
    blocks = []

    def visit(block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> None:
        blocks.append(block)
        streamed.update(moments)

    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    StageStream("decoder", module, weights, lambda name: True, visit).run(calls, outputs=False)
    assert blocks == [f"decoder.layers.{i}" for i in range(spec.decoder.layers)] + ["decoder.head"]
    assert set(streamed) == set(wanted)
    for name, moment in wanted.items():
        assert streamed[name].count == moment.count, name
        torch.testing.assert_close(streamed[name].matrix, moment.matrix, msg=name)


def test_later_blocks_see_what_a_visit_changed(spec: ModelSpec) -> None:
    """Sequential: after a visit that returns other weights the next block's inputs come from those."""
    weights, changed = RandomWeights(spec), RandomWeights(spec)
    first = {name: tensor for name, tensor in changed.parameters.items() if name.startswith("decoder.layers.0.")}
    for tensor in first.values():
        tensor.mul_(0.5)
    calls = [decoder_call(spec)]
    wanted = whole(spec, changed, calls)
    streamed: dict[str, Moment] = {}

    def visit(block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> RandomWeights | None:
        streamed.update(moments)
        return changed if block == "decoder.layers.0" else None

    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    StageStream("decoder", module, weights, lambda name: True, visit).run(calls, outputs=False)
    before = whole(spec, weights, calls)
    for name, moment in streamed.items():
        expected = before if name.startswith("decoder.layers.0.") else wanted
        torch.testing.assert_close(moment.matrix, expected[name].matrix, msg=name)


def test_nothing_stays_in_memory(spec: ModelSpec) -> None:
    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    stream = StageStream("decoder", module, RandomWeights(spec), lambda name: name.endswith("head"), lambda *_: None)
    stream.run([decoder_call(spec)], outputs=False)
    assert all(parameter.device.type == "meta" for parameter in module.parameters())
    assert all(parameter.device.type == "meta" for block in stream.blocks for parameter in block.parameters())


def test_one_block_is_in_memory_at_a_time(spec: ModelSpec) -> None:
    with torch.device("meta"):
        module = build_stage(spec, "decoder", Kernels())
    held: list[list[int]] = []

    def visit(block: str, moments: Mapping[str, Moment], run: BlockRun | None) -> None:
        loaded = [any(p.device.type != "meta" for p in part.parameters()) for part in stream.blocks]
        held.append([index for index, here in enumerate(loaded) if here])

    stream = StageStream("decoder", module, RandomWeights(spec), lambda name: ".layers." in name, visit)
    stream.run([decoder_call(spec)], outputs=False)
    assert held == [[index] for index in range(spec.decoder.layers)]
