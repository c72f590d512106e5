"""The layers that all libraries get: plain weights, and the input rows of the samples, conversation by conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from calibrate.methods.base import LayerProblem
from calibrate.statistics.moments import Moment
from runtime_py.backends.records import ONNX

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Captured:
    """One layer for every library.

    Attributes:
        ours: the same as our methods get it.
        inputs: float32 (rows, columns) of each conversation.
    """

    ours: LayerProblem
    inputs: tuple[Tensor, ...]

    @property
    def weight(self) -> Tensor:
        return self.ours.weight

    @property
    def block(self) -> int:
        return self.ours.group

    def rows(self) -> Tensor:
        """All input rows (rows, columns)."""
        import torch

        return torch.cat(self.inputs)

    def linear(self) -> nn.Linear:
        """A torch layer that holds a copy of the weight."""
        import torch

        made = torch.nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=False)
        made.weight = torch.nn.Parameter(self.weight.clone(), requires_grad=False)
        return made


class Library(Protocol):
    """One module of this package.

    Attributes:
        DISTRIBUTION: its name for pip.
        INSTALL: the command that installs it beside torch without changing torch.
        METHODS: column title to a function that returns the weight (rows, columns) as the library's result reads back.
    """

    DISTRIBUTION: str
    INSTALL: str
    METHODS: Mapping[str, Callable[[Captured], Tensor]]


def captured(
    model: str, weights: str, block: int, samples: int, seed: int, layers: Sequence[str] = ()
) -> Iterator[Captured]:
    """Every int4 layer of the model for cpu, with the inputs that full-precision weights give.

    Args:
        layers: parts of layer names; all layers without them.
    """
    from calibrate.request import CalibrationRequest
    from calibrate.run import plan
    from calibrate.samples.prompts import prompts_of
    from calibrate.statistics.capture import stream
    from export.quantisation.grids import GRIDS

    request = CalibrationRequest(
        model, "cpu", "mse-clip", Path("unused"), weights=weights, precision="int4", block_size=block, samples=samples,
        seed=seed,
        sample_set="general",
    )  # fmt: skip
    planned = plan(request)
    checkpoint = planned.checkpoint
    assert checkpoint.weights is not None
    wanted = [name for name in planned.wanted[ONNX.name] if not layers or any(part in name for part in layers)]
    processor, prompts = prompts_of(request, checkpoint)
    inputs: dict[int, list[Any]] = {}
    moments: dict[str, Moment] = {}
    with _kept_rows(inputs):
        stream(
            checkpoint.spec,
            checkpoint.weights,
            prompts,
            processor,
            lambda n: n in wanted,
            lambda _, m, run: moments.update(m),
            weigh_rows=False,
        )
    for name in wanted:
        weight = checkpoint.weights.tensor(f"{name}.weight").float()
        grid = GRIDS[planned.assignments[ONNX.name][name].grid]
        yield Captured(LayerProblem(name, weight, grid, moments[name]), tuple(inputs[id(moments[name])]))


class _kept_rows:
    """While inside, every `Moment.add` also keeps its rows, by the moment's id."""

    def __init__(self, kept: dict[int, list[Any]]) -> None:
        self.kept, self.add = kept, Moment.add

    def __enter__(self) -> None:
        add, kept = self.add, self.kept

        def keeping(moment: Moment, rows: Tensor, weights: Tensor | None = None) -> None:
            assert weights is None, "every library takes rows as they are"
            add(moment, rows)
            kept.setdefault(id(moment), []).append(rows.detach().reshape(-1, rows.shape[-1]).float().clone())

        Moment.add = keeping  # type: ignore[method-assign, assignment]

    def __exit__(self, *error: object) -> None:
        Moment.add = self.add  # type: ignore[method-assign]
