"""What `parity_tests.laboratory.gpu_speed` times: the calls of one picture, one prompt and single steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_py.backends.onnx_files import external_files
from runtime_py.backends.records import ONNX
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.errors import UsageError

if TYPE_CHECKING:
    from export.specs import ModelSpec
    from parity_tests.reference.checkpoint_side import Checkpoint
    from parity_tests.reference.reference import TorchBackend
    from runtime_py.package import Package

HALF_BYTES = 2
PICTURE_SIDE = 448
PREFILL = "decoder prefill"


@dataclass
class Call:
    """One call of one stage.

    Attributes:
        inputs: by contract name, without cache, mask and logit positions.
        tokens: decoder tokens fed; 0 for the other stages.
        past: positions in the cache before; ``before`` is what fills them.
        operations: multiplications and additions of the stage's matrices.
        cache_bytes: keys and values that must be read, as float16.
        cache: per layer keys and values of ``past`` positions, where PyTorch runs.
        expected: PyTorch eager's output, once it has run.
    """

    name: str
    stage: str
    inputs: dict[str, np.ndarray]
    operations: int
    tokens: int = 0
    past: int = 0
    cache_bytes: int = 0
    before: dict[str, np.ndarray] = field(default_factory=dict)
    cache: Sequence[Any] = ()
    expected: np.ndarray | None = None

    def on_device(self, dtype: Any, device: str) -> dict[str, Any]:
        """The arguments of the stage's PyTorch module."""
        import torch

        arguments: dict[str, Any] = {}
        for name, array in self.inputs.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
            arguments[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if self.stage == DECODER:
            arguments["attention_mask"] = torch.ones((1, self.past + self.tokens), dtype=torch.int64, device=device)
            arguments["logit_positions"] = torch.tensor([self.tokens - 1], device=device)
            arguments["past_key_values"] = list(self.cache)
        return arguments


def calls_of(checkpoint: Checkpoint, prefill: int, contexts: Sequence[int], dtype: Any, device: str) -> list[Call]:
    """The calls of a checkpoint: vision encoder and connector of one picture, a prompt, and a step at every context.

    Args:
        dtype: PyTorch's, of the weights on ``device`` that make the inputs, and of the keys and values.

    Raises:
        UsageError: the decoder takes inputs that this program cannot make (adapters that are routed by token).
    """
    from parity_tests.reference.reference import TorchBackend

    spec = checkpoint.spec
    if spec.decoder.adapter is not None:
        raise UsageError(
            f"the decoder of {spec.family} is routed by its tokens", "a decoder without adapters", "name another checkpoint"
        )
    backend = TorchBackend(spec, checkpoint.weights, dtype, device)
    calls = _picture_calls(checkpoint, backend)
    prompt = _decoder_call(spec, backend, PREFILL, 0, prefill)
    prompt.cache = backend.start(prefill).cache
    calls.append(prompt)
    for context in contexts:
        call = _decoder_call(spec, backend, f"decoder step at {context}", context, 1)
        call.before = _embedded(spec, backend, 0, context)
        state = backend.start(context)
        backend.forward(state, call.before, np.array([-1], np.int64))
        call.cache = state.cache
        calls.append(call)
    backend.close()
    return calls


def _picture_calls(checkpoint: Checkpoint, backend: TorchBackend) -> list[Call]:
    from parity_tests.check.package_questions import StandInTokenizer

    spec = checkpoint.spec
    rows, columns = np.mgrid[0:PICTURE_SIDE, 0:PICTURE_SIDE]
    picture = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    processor = checkpoint.processor(StandInTokenizer(spec.embed.vocabulary, ()))
    image = processor.images([picture])[0]
    features = backend.run(VISION, image.vision)["vision_features"]
    connector = {"vision_features": features, **image.connector}
    seen = matrix_elements(backend, VISION) * features.shape[0] * features.shape[1]
    # Most connectors pool, so that their matrices meet fewer rows than they are given; their bytes alone make the floor.
    return [Call("vision encoder", VISION, dict(image.vision), 2 * seen), Call("connector", CONNECTOR, connector, 0)]


def _decoder_call(spec: ModelSpec, backend: TorchBackend, name: str, past: int, tokens: int) -> Call:
    head = spec.decoder.vocabulary * spec.decoder.hidden
    matrices = matrix_elements(backend, DECODER) - head
    positions = 2 * spec.decoder.layers * spec.decoder.kv_heads * spec.decoder.head_dim
    return Call(
        name,
        DECODER,
        _embedded(spec, backend, past, tokens),
        2 * (matrices * tokens + head),
        tokens,
        past,
        positions * past * HALF_BYTES,
    )


def _embedded(spec: ModelSpec, backend: TorchBackend, start: int, tokens: int) -> dict[str, np.ndarray]:
    """Inputs of drawn ids at positions from ``start`` on."""
    ids = np.random.default_rng(7 + start).integers(3, spec.embed.vocabulary, (1, tokens))
    positions = np.arange(start, start + tokens)[None]
    axes = len(spec.decoder.rope.sections)
    shaped = np.repeat(positions[None], axes, axis=0) if axes else positions
    return {"inputs_embeds": backend.run(EMBED, {"input_ids": ids})["inputs_embeds"], "position_ids": shaped}


def matrix_elements(backend: TorchBackend, stage: str) -> int:
    """Elements of a stage's two-dimensional weights that a matrix product reads."""
    from export.modules.kernels import Linear

    return sum(part.weight.numel() for part in backend.stage(stage).modules() if isinstance(part, Linear))


def weight_bytes(package: Package, stage: str) -> int:
    """Bytes of the files that hold a stage's weights in a package's ONNX graphs."""
    graph = package.folder / ONNX.block(package.manifest)["stages"][stage]["file"]
    return sum((graph.parent / name).stat().st_size for name in external_files(graph))
