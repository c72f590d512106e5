"""Calibration samples through the whole reference, stage by stage and block by block.

Decoder layers see what they see in use: the same session merges image rows into the prompt, and the processor arranges
whatever further inputs the family's decoder wants, so that partial LoRA, experts and gates get their own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.samples.data import Prompt
from calibrate.samples.row_weights import RowWeights
from calibrate.statistics.block_run import BlockRun
from calibrate.statistics.passes import PLAIN, Passes
from calibrate.statistics.stage_stream import Call, StageStream, Visit, Wanted
from export.quantisation.codes import WeightProvider
from runtime_py.backends.base import Arrays
from runtime_py.contracts import CONNECTOR, DECODER, EMBED, VISION
from runtime_py.generation.session import Limits, Session
from runtime_py.preprocess.base import Processor

if TYPE_CHECKING:
    from torch import Tensor

    from export.modules.kernels import Kernels
    from export.specs import ModelSpec


def stream(
    spec: ModelSpec,
    weights: WeightProvider,
    prompts: Sequence[Prompt],
    processor: Processor,
    wanted: Wanted,
    visit: Visit,
    weigh_rows: bool = True,
    kernels: Kernels | None = None,
    passes: Passes = PLAIN,
) -> None:
    """Run every prompt through the model, visiting each block of every stage that has wanted layers.

    Peak memory: one block's weights, the moments of its wanted layers and the activations of all prompts between two blocks.

    Args:
        wanted: whether a layer's moment is wanted, by canonical name.
        visit: see calibrate.statistics.stage_stream.Visit; weights that it returns hold for all that follows.
        weigh_rows: moments of decoder layers count rows by `RowWeights`; else all the same.
        kernels: of the decoder; None for the plain ones.
        passes: what may be left out.
    """
    current = [weights]

    def visited(block: str, moments: Any, run: BlockRun | None) -> WeightProvider | None:
        changed = visit(block, moments, run)
        if changed is not None:
            current[0] = changed
        return changed

    def stage(name: str, row_weights: RowWeights | None = None) -> StageStream:
        built = _module(spec, name, kernels if name == DECODER else None)
        return StageStream(name, built, current[0], wanted, visited, row_weights, passes)

    features = _image_rows(stage, prompts)
    calls = decoder_calls(spec, current[0], prompts, processor, features)
    stage(DECODER, RowWeights(prompts, calls, spec.decoder.layer_kind.layer_rows) if weigh_rows else None).run(
        calls, outputs=False
    )


def answer_logits(
    spec: ModelSpec, weights: WeightProvider, prompts: Sequence[Prompt], processor: Processor
) -> Iterable[Tensor]:
    """float32 (1, positions, vocabulary) of each prompt: at its last token and at its answer tokens, answer fed.

    Peak memory: as `stream`, then the head and one prompt's logits at a time. Where a decoder's gate reads the request, the
    whole prompt is one prefill.
    """
    return _unwatched(spec, weights, DECODER).finished(answer_calls(spec, weights, prompts, processor))


def answer_calls(spec: ModelSpec, weights: WeightProvider, prompts: Sequence[Prompt], processor: Processor) -> list[Call]:
    """The decoder's inputs for each prompt, as `decoder_calls` has them, asking for the logits of `answer_logits`."""
    import torch

    features = _image_rows(lambda name: _unwatched(spec, weights, name), prompts)
    calls = decoder_calls(spec, weights, prompts, processor, features)
    for call, prompt in zip(calls, prompts, strict=True):
        tokens = prompt.layout.input_ids.shape[1]
        call["logit_positions"] = torch.arange(tokens - 1 - prompt.answer, tokens)
    return calls


def _unwatched(spec: ModelSpec, weights: WeightProvider, stage: str) -> StageStream:
    """A stage that runs and is not looked at."""
    return StageStream(stage, _module(spec, stage), weights, lambda _: False, lambda *_: None)


def _image_rows(stage: Callable[[str], StageStream], prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """The connector's rows (rows, width) of every image of all prompts in order."""
    images = [image for prompt in prompts for image in prompt.images]
    if not images:
        return []
    seen = stage(VISION).run([tensors(image.vision) for image in images])
    calls = [{"vision_features": rows, **tensors(image.connector)} for rows, image in zip(seen, images, strict=True)]
    del seen
    return [rows.reshape(-1, rows.shape[-1]).numpy() for rows in stage(CONNECTOR).run(calls)]


def decoder_calls(
    spec: ModelSpec,
    weights: WeightProvider,
    prompts: Sequence[Prompt],
    processor: Processor,
    features: Sequence[np.ndarray],
) -> list[Call]:
    """The decoder's inputs for each prompt as one prefill from an empty cache; ``features`` of all images in order."""
    recorder = _Recorder(spec, weights)
    longest = max(prompt.layout.input_ids.shape[1] for prompt in prompts)
    session = Session(recorder, processor, Limits(longest, longest))
    rest = list(features)
    for prompt in prompts:
        mine, rest = rest[: len(prompt.images)], rest[len(prompt.images) :]
        session.reset()
        session.prefill(session.merge(prompt.layout, mine), prompt.layout)
    return recorder.calls


@dataclass
class _State:
    capacity: int
    length: int = 0


@dataclass
class _Recorder:
    """A backend that looks embeddings up and keeps what the decoder would get."""

    spec: ModelSpec
    weights: WeightProvider
    calls: list[Call] = field(default_factory=list)
    name: str = "calibration"
    _known: dict[int, np.ndarray] = field(default_factory=dict)

    def run(self, stage: str, inputs: Arrays) -> dict[str, np.ndarray]:
        assert stage == EMBED, "images are encoded before"
        ids = inputs["input_ids"]
        for token in {int(token) for token in ids.ravel()} - set(self._known):
            row = self.weights.rows(f"{EMBED}.table.weight", token, token + 1)
            self._known[token] = (row.float() * self.spec.embed.scale).numpy()[0]
        return {"inputs_embeds": np.stack([self._known[int(token)] for token in ids.ravel()])[None]}

    def start(self, capacity: int) -> _State:
        return _State(capacity)

    def forward(self, state: _State, inputs: Arrays, logit_positions: np.ndarray) -> np.ndarray:
        import torch

        tokens = inputs["inputs_embeds"].shape[1]
        decoder = self.spec.decoder
        empty = torch.zeros(1, decoder.kv_heads, 0, decoder.head_dim)
        self.calls.append(
            {
                **tensors(inputs),
                "attention_mask": torch.ones(1, tokens, dtype=torch.int64),
                "logit_positions": torch.arange(tokens),
                "past_key_values": [(empty, empty)] * decoder.layers,
            }
        )
        state.length += tokens
        return np.zeros((1, 1, 1), np.float32)

    def close(self) -> None:
        self.calls.clear()


def _module(spec: ModelSpec, stage: str, kernels: Kernels | None = None) -> Any:
    import torch

    from export.modules.build import build_stage
    from export.modules.kernels import Kernels

    with torch.device("meta"):
        return build_stage(spec, stage, kernels or Kernels())


def tensors(arrays: Arrays) -> dict[str, Any]:
    """Arrays as tensors that share their memory."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
