"""A stage run block by block over all calls at once: weights of one block in memory, activations of all samples.

The stage's own ``forward`` does what lies before and after its blocks; its list of blocks is replaced, first by a stand-in
that keeps what the first block would receive, in the end by one that hands the last block's output on. So nothing of a
stage is written down a second time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from calibrate.samples.row_weights import RowWeights
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.moments import Moment
from calibrate.statistics.passes import PLAIN, Enough, Passes, Seen, in_half
from calibrate.statistics.stage_parameters import StageParameters
from calibrate.statistics.stand_ins import FirstBlockInput, LastBlockOutput, LayerInput, first_output
from export.quantisation.codes import WeightProvider
from runtime_py.contracts import DECODER

if TYPE_CHECKING:
    from torch import Tensor, nn

    from export.modules.kernels import Linear

Visit = Callable[[str, Mapping[str, Moment], BlockRun | None], WeightProvider | None]
"""Called once every sample has passed a block: with its name, the moments of its wanted layers, and the block itself
where it is one of several alike. Returns the weights that the samples go on with, None for those they came with."""

Wanted = Callable[[str], bool]
"""Whether a layer's moment is wanted, by canonical name."""

Call = dict[str, Any]


def block_of(layer: str) -> str:
    """What a visit calls the block of a layer: ``decoder.layers.0`` of ``decoder.layers.0.mlp.down``; a layer outside the
    blocks is one by itself with its stage.
    """
    parts = layer.split(".")
    index = next((place for place, part in enumerate(parts) if part.isdigit()), 1 if parts[0] == DECODER else 0)
    return ".".join(parts[: index + 1])


class StageStream:
    """One stage.

    Args:
        stage: its name.
        module: the stage on the meta device.
        weights: what samples run with until a visit says otherwise.
        row_weights: of all calls' rows in the moments; None where they count the same.
        passes: what may be left out.
    """

    def __init__(
        self,
        stage: str,
        module: nn.Module,
        weights: WeightProvider,
        wanted: Wanted,
        visit: Visit,
        row_weights: RowWeights | None = None,
        passes: Passes = PLAIN,
    ) -> None:
        from torch import nn

        from export.modules.kernels import Linear

        self.stage, self.module, self.weights, self.wanted, self.visit = stage, module.eval(), weights, wanted, visit
        self.row_weights, self.passes = row_weights, passes
        self._call = 0
        self.names = {id(part): name for name, part in module.named_modules()}
        lists = [(name, child) for name, child in module.named_children() if isinstance(child, nn.ModuleList)]
        self.list_name = lists[0][0] if len(lists) == 1 else ""
        self.blocks: list[nn.Module] = list(lists[0][1]) if self.list_name else []
        self.parameters = StageParameters(stage, module, self.list_name, passes.half)
        for part in module.modules() if passes.half else ():
            if isinstance(part, Linear):
                part.forward = in_half(part)  # type: ignore[method-assign, assignment]

    def run(self, calls: Sequence[Call], outputs: bool = True) -> list[Tensor]:
        """Run every call; the stage's first output of each, or nothing without ``outputs``, when the last linear layer is
        not computed either.
        """
        import torch

        if self.blocks and outputs:
            return list(self.finished(calls))
        with torch.no_grad():
            if not self.blocks:
                return self._whole(calls, outputs)
            last = self._last_layer()
            with self.parameters.held(self.weights, self.module, "", without=last):
                rows = self._through_blocks(calls)
                if last and self.wanted(f"{self.stage}.{last}"):
                    self._observe_last(calls, rows)
        return []

    def finished(self, calls: Sequence[Call]) -> Iterable[Tensor]:
        """`run`'s outputs, as often as they are asked for; what follows a stage's blocks runs then (`Finished`)."""
        import torch

        if not self.blocks:
            return self.run(calls)
        last = self._last_layer()
        with torch.no_grad(), self.parameters.held(self.weights, self.module, "", without=last):
            return Finished(self, calls, self._through_blocks(calls))

    def _whole(self, calls: Sequence[Call], outputs: bool) -> list[Tensor]:
        def one(call: Call) -> Tensor:
            result: Tensor = first_output(self.module(**call))
            return result

        with self.parameters.held(self.weights, self.module, ""):
            results, changed = self._observed(self.stage, self.module, calls, one, self.passes.discarded)
            if changed and outputs:
                self.parameters.load(self.weights, self.module, "")
            if outputs and (changed or not results):
                results = [one(call) for call in calls]
        return results

    def _through_blocks(self, calls: Sequence[Call]) -> list[Tensor]:
        """What the last block gives for each call."""
        from torch import nn

        entered = FirstBlockInput()
        setattr(self.module, self.list_name, nn.ModuleList([entered.module]))
        entries = self._observed(
            f"{self.stage}.input", self.module, calls, lambda call: entered.of(self.module, _short(call))
        )[0]
        rows = [entry[0][0] for entry in entries]
        rest = [(entry[0][1:], entry[1]) for entry in entries]
        # they hold the rows that come in, which blocks overwrite one by one
        del entries
        for index, block in enumerate(self.blocks):
            rows = self._block(index, block, rows, rest)
        return rows

    def _block(self, index: int, block: nn.Module, rows: list[Tensor], rest: list[tuple[Any, Any]]) -> list[Tensor]:
        name = f"{self.list_name}.{index}"

        def one(entry: tuple[Tensor, tuple[Any, Any]]) -> Tensor:
            x, (more, named) = entry
            result: Tensor = first_output(block(x, *more, **named))
            return result

        def as_run(layers: Iterable[str], outputs: list[Tensor]) -> BlockRun:
            places = {layer: f"{layer.removeprefix(f'{self.stage}.{name}.')}.weight" for layer in layers}
            inputs = [(x, more, named) for x, (more, named) in zip(rows, rest, strict=True)]
            return BlockRun(block, places, inputs, outputs, None if self.row_weights is None else self.row_weights.rows)

        layers = list(self._layers(block))
        settled = bool(layers) and self.passes.settled(f"{self.stage}.{name}", layers)
        results: list[Tensor] = []
        with self.parameters.held(self.weights, block, f"{name}."):
            if not settled:
                entries = list(zip(rows, rest, strict=True))
                results, changed = self._observed(f"{self.stage}.{name}", block, entries, one, self.passes.discarded, as_run)
                if changed:
                    self.parameters.load(self.weights, block, f"{name}.")
                    results = []
                del entries
            if not results:
                # each call's rows make room for what they become
                for place in range(len(rows)):
                    rows[place] = one((rows[place], rest[place]))
                results = rows
        return results

    def _layers(self, module: nn.Module) -> dict[str, Linear]:
        """The wanted linear layers of a module, by canonical name."""
        from export.modules.kernels import Linear

        parts = [part for part in module.modules() if isinstance(part, Linear)]
        named = {f"{self.stage}.{self.names.get(id(part), '')}": part for part in parts}
        return {name: part for name, part in named.items() if self.wanted(name)}

    def _leaving(self) -> LastBlockOutput:
        """What now stands for the blocks and hands on what the last one gave."""
        from torch import nn

        leaving = LastBlockOutput()
        setattr(self.module, self.list_name, nn.ModuleList([leaving.module]))
        return leaving

    def _observe_last(self, calls: Sequence[Call], rows: list[Tensor]) -> None:
        """Visit the last linear layer, which is not computed."""
        leaving, last = self._leaving(), self._last_layer()
        name = f"{self.stage}.{last}"
        if self.passes.settled(name, [name]):
            return
        moment = Moment(getattr(self.module, last).weight.shape[1])
        recorder = LayerInput(lambda x: self._take(name, moment, x))
        setattr(self.module, last, recorder.module)
        for call, x in self._each(list(zip(calls, rows, strict=True))):
            leaving.of(self.module, _short(call), x)
        self.visit(name, {name: moment}, None)

    def _last_layer(self) -> str:
        """The linear layer that a stage with blocks ends in (a decoder's head), which may be too large to hold."""
        return "head" if self.list_name and hasattr(self.module, "head") else ""

    def _observed(
        self,
        block: str,
        module: nn.Module,
        entries: Sequence[Any],
        one: Callable[[Any], Any],
        discarded: bool = False,
        as_run: Callable[[Iterable[str], list[Any]], BlockRun] | None = None,
    ) -> tuple[list[Any], bool]:
        """Run every entry with the wanted layers under watch, and visit; what came out, and whether weights have changed.

        Nothing comes out where it would be ``discarded``; such a pass ends at the last layer's input.
        """
        moments: dict[str, Moment] = {}
        enough = Enough() if discarded else None
        hooks = []
        for name, part in self._layers(module).items():
            # a stage's last layer may not be in memory: its input is taken by itself (`_observe_last`)
            if part.weight.device.type != "meta":
                moments[name] = Moment(part.weight.shape[1])
                hooks.append(part.register_forward_pre_hook(self._watcher(name, moments[name], enough)))
        if not moments:
            return [one(entry) for entry in self._each(entries)], False
        outputs = []
        try:
            for entry in self._each(entries):
                if enough is None:
                    outputs.append(one(entry))
                    continue
                enough.begin()
                with suppress(Seen):
                    one(entry)
        finally:
            for hook in hooks:
                hook.remove()
        weights = self.visit(block, moments, None if as_run is None or discarded else as_run(moments, outputs))
        if weights is None:
            return outputs, False
        self.weights = weights
        return outputs, True

    def _each(self, entries: Sequence[Any]) -> Iterator[Any]:
        """What belongs to each call, with the call's number noted while it runs."""
        for self._call, entry in enumerate(entries):
            yield entry

    def _watcher(self, layer: str, moment: Moment, enough: Enough | None) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def watch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._take(layer, moment, inputs[0])
            if enough is not None:
                enough.seen()

        return watch

    def _take(self, layer: str, moment: Moment, rows: Tensor) -> None:
        count = rows.numel() // rows.shape[-1]
        moment.add(rows, None if self.row_weights is None else self.row_weights.of(self._call, layer, count))


class Finished:
    """Calls that have passed a stage's blocks; each turn gives the stage's first output of each, computed one by one.

    In memory are what the last block gave and, during a turn, the weights behind it: a decoder's logits may be a hundred
    times as large.
    """

    def __init__(self, stream: StageStream, calls: Sequence[Call], rows: list[Tensor]) -> None:
        self._stream, self._calls, self._rows = stream, calls, rows

    def __iter__(self) -> Iterator[Tensor]:
        import torch

        stream, leaving, module = self._stream, self._stream._leaving(), self._stream.module
        with stream.parameters.held(stream.weights, module, ""):
            for call, rows in zip(self._calls, self._rows, strict=True):
                with torch.no_grad():
                    output = leaving.of(module, _short(call), rows)
                yield output


def _short(call: Call) -> Call:
    """The call with the cache of one layer, as the stand-ins are one layer."""
    past = call.get("past_key_values")
    return call if past is None else {**call, "past_key_values": past[:1]}
