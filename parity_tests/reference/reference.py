"""The PyTorch reference as a runtime backend, so that one pipeline drives both sides of every comparison.

`TorchBackend` holds all weights; `parity_tests.reference.streamed` holds a few rows at a time. Both build
`export.modules` with the plain kernels and record the output of every block while `watch` is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.modules.build import build_stage
from export.modules.kernels import CachedAttention, Kernels
from export.quantisation.codes import WeightProvider
from export.specs import ModelSpec
from export.stages import contracts
from parity_tests.reference.arithmetic import PLAIN, Arithmetic, ArithmeticKernels, StoredWeights
from runtime_py.backends.base import Arrays
from runtime_py.contracts import DECODER, STAGES

BlockOutputs = dict[str, np.ndarray]
"""Block name (``patch``, ``blocks.3``, ``layers.0``, ``kv_proj``) to output, in the order the blocks ran."""


@dataclass
class Watched:
    """What a backend did while it was watched.

    Attributes:
        blocks: stage to outputs of its blocks, of the last call.
        calls: stage to (inputs, output) of its first call.
        inside: whether modules within blocks are kept too.
    """

    blocks: dict[str, BlockOutputs] = field(default_factory=lambda: {stage: {} for stage in STAGES})
    calls: dict[str, tuple[Arrays, np.ndarray]] = field(default_factory=dict)
    inside: bool = False


@dataclass
class TorchState:
    """The reference's key/value cache: per layer two of (batch, kv_heads, length, head_dim), grown by copying."""

    capacity: int
    length: int = 0
    cache: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 convolutions in float32 on a GPU too, where PyTorch rounds them to TF32 (10 bits) unless told otherwise.

    Its matrix products are exact by default. Source: docs.pytorch.org, notes/cuda, "TensorFloat-32 (TF32)".
    """
    settings = torch.backends.cudnn
    with settings.flags(enabled=settings.enabled, benchmark=settings.benchmark, allow_tf32=False):
        yield


class TorchBackend:
    """Runs a spec in PyTorch.

    Args:
        spec: the model.
        weights: parameters by canonical name; a WeightMap, or DequantisedWeights for the reference of an int4 package.
        dtype: what the parameters and activations are held in; the border is float32 whatever it is.
        device: ``cpu``, or ``cuda`` where there is one.
        arithmetic: roundings that a package's kernels make on purpose and this reference is to make too.
    """

    name = "torch"

    def __init__(
        self,
        spec: ModelSpec,
        weights: WeightProvider,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        arithmetic: Arithmetic = PLAIN,
    ) -> None:
        self.spec, self.dtype, self.device = spec, dtype, torch.device(device)
        self.arithmetic = arithmetic
        self.weights = StoredWeights(weights, arithmetic.half_weights) if arithmetic.half_weights else weights
        self.contracts = contracts(spec)
        self._stages: dict[str, nn.Module] = {}
        self._watched: Watched | None = None

    def stage(self, stage: str) -> nn.Module:
        """The module of a stage with its weights, built when first asked for."""
        if stage not in self._stages:
            module = self.build(stage)
            top = blocks(module)
            for name, part in parts(module).items():
                part.register_forward_hook(self._recorder(stage, name, name in top))
            for owner, first in block_lists(module).items():
                first.register_forward_pre_hook(self._input_recorder(stage, f"{owner}.input"))
            self._stages[stage] = module.eval()
        return self._stages[stage]

    def build(self, stage: str) -> nn.Module:
        """The module with every parameter loaded in ``dtype`` on ``device``."""
        with torch.device("meta"):
            module = build_stage(self.spec, stage, self.kernels())
        load_parameters(module, stage, self.weights, self.dtype, self.device)
        return module

    def kernels(self) -> Kernels:
        return ArithmeticKernels(self.arithmetic)

    @full_float32()
    @torch.inference_mode()
    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """One stage other than the decoder: its contract's outputs as float32 arrays by name."""
        contract = self.contracts[stage]
        tensors = {name: self._to_device(array) for name, array in inputs.items()}
        result = self.stage(stage)(**tensors)
        results = result if isinstance(result, tuple) else (result,)
        outputs = {tensor.name: to_numpy(value) for tensor, value in zip(contract.outputs, results, strict=True)}
        if self._watched is not None:
            self._watched.calls.setdefault(stage, (dict(inputs), outputs[contract.outputs[0].name]))
        return outputs

    def start(self, capacity: int) -> TorchState:
        """An empty cache with room for as many positions."""
        spec = self.spec.decoder
        empty = torch.zeros((1, spec.kv_heads, 0, spec.head_dim), dtype=self.dtype, device=self.device)
        return TorchState(capacity, 0, [(empty, empty) for _ in range(spec.layers)])

    @full_float32()
    @torch.inference_mode()
    def forward(self, state: TorchState, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        """Logits float32 (batch, positions asked, vocabulary) of tokens behind the cache, which grows by them."""
        tensors: dict[str, Any] = {name: self._to_device(array) for name, array in inputs.items()}
        batch, tokens = tensors["inputs_embeds"].shape[:2]
        if state.length + tokens > state.capacity:
            raise ValueError(f"{state.length} + {tokens} positions do not fit a cache of {state.capacity}")
        mask = torch.ones((batch, state.length + tokens), dtype=torch.int64, device=self.device)
        positions = torch.from_numpy(np.asarray(logit_positions, np.int64)).to(self.device)
        logits, state.cache = self.stage(DECODER)(
            **tensors, attention_mask=mask, logit_positions=positions, past_key_values=state.cache
        )
        state.length += tokens
        values = to_numpy(logits)
        if self._watched is not None:
            self._watched.calls.setdefault(DECODER, (dict(inputs), values))
        return values

    def close(self) -> None:
        self._stages.clear()

    def parameter(self, target: str) -> np.ndarray:
        """One parameter by canonical name, float32; e.g. the resampled position table."""
        return to_numpy(self.weights.tensor(target))

    @contextmanager
    def watch(self, inside: bool = False) -> Iterator[Watched]:
        """While inside, every stage's first call and every block's last output are kept.

        Args:
            inside: also keep the outputs of every module within the blocks, by path (``layers.0.mlp.down``).
        """
        self._watched = Watched(inside=inside)
        try:
            yield self._watched
        finally:
            self._watched = None

    def block_outputs(self, stage: str, inputs: Arrays, inside: bool = False) -> BlockOutputs:
        """Outputs of a stage's blocks (and of what is in them) for given inputs; the decoder runs on an empty cache."""
        with self.watch(inside) as seen:
            if stage == DECODER:
                tokens = inputs["inputs_embeds"].shape[1]
                self.forward(self.start(tokens), inputs, np.arange(tokens))
            else:
                self.run(stage, inputs)
        return seen.blocks[stage]

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _recorder(self, stage: str, name: str, is_block: bool) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._watched is not None and (is_block or self._watched.inside):
                self._watched.blocks[stage][name] = to_numpy(output[0] if isinstance(output, tuple) else output)

        return record

    def _input_recorder(self, stage: str, name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self._watched is not None:
                self._watched.blocks[stage][name] = to_numpy(inputs[0])

        return record


def blocks(stage: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a stage: members of its module lists (``layers.0``) and its other direct children (``norm``).

    The decoder's attention kernel, which serves all layers, is no block of its own.
    """
    blocks: dict[str, nn.Module] = {}
    for name, child in stage.named_children():
        if isinstance(child, nn.ModuleList):
            blocks |= {f"{name}.{index}": member for index, member in enumerate(child)}
        elif not isinstance(child, CachedAttention):
            blocks[name] = child
    return blocks


def parts(stage: nn.Module) -> dict[str, nn.Module]:
    """Every module below a stage by path, blocks included; lists and the shared attention kernel are none."""
    return {
        name: module
        for name, module in stage.named_modules()
        if name and not isinstance(module, nn.ModuleList | CachedAttention)
    }


def block_lists(stage: nn.Module) -> dict[str, nn.Module]:
    """The first member of every module list of a stage by the list's name; what enters it is worth recording."""
    lists = {name: child for name, child in stage.named_children() if isinstance(child, nn.ModuleList)}
    return {name: child[0] for name, child in lists.items() if len(child)}


def load_parameters(
    module: nn.Module, stage: str, weights: WeightProvider, dtype: torch.dtype, device: torch.device
) -> None:
    """Replace every meta parameter of a stage by its canonical weight.

    Raises:
        ValueError: a weight has another shape than its parameter.
    """
    owners: Mapping[str, nn.Module] = dict(module.named_modules())
    for name, parameter in list(module.named_parameters()):
        value = weights.tensor(f"{stage}.{name}").to(device=device, dtype=dtype)
        if value.shape != parameter.shape:
            raise ValueError(f"{stage}.{name}: weight is {list(value.shape)}, parameter {list(parameter.shape)}")
        owner, _, leaf = name.rpartition(".")
        setattr(owners[owner], leaf, nn.Parameter(value.contiguous(), requires_grad=False))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A float32 (or integer) array of the caller's own."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.is_floating_point() else plain).numpy().copy()
