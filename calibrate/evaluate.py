"""What a set of weights costs a demo checkpoint: task accuracy, and how far its logits are from the full-precision ones.

Both figures always, since either alone misleads. Answers come from the PyTorch reference over any WeightProvider;
similarity is taken where the right answer is fed (one forward pass per question), so that it covers every answer token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrate.capture import decoder_calls, tensors
from calibrate.codes import WeightProvider
from calibrate.data import Prompt, Sample, prepare
from runtime_py.contracts import CONNECTOR, DECODER, VISION
from runtime_py.preprocess.base import Message

if TYPE_CHECKING:
    from torch import Tensor

    from export.demo.accuracy import Case
    from export.demo.reference import Reference
    from export.opened import OpenedCheckpoint


@dataclass(frozen=True)
class Score:
    """One set of weights.

    Attributes:
        accuracy: share of held-out questions answered right; None where there is no task.
        cosine: of the logits at answer positions, mean over positions; ``worst_cosine`` the least of them.
        kl: mean nats per position from the full-precision distribution, which a few unsure positions can make;
            ``median_kl`` is not moved by those.
        agreement: share of positions where the same token comes first.
    """

    accuracy: float | None
    cosine: float
    worst_cosine: float
    kl: float
    agreement: float
    median_kl: float = 0.0


class Evaluation:
    """Held-out questions of a demo checkpoint, and the full-precision answers to compare with.

    Args:
        pictures: held-out pictures; each is asked several questions.
        similar: questions whose logits are compared.
    """

    def __init__(self, checkpoint: OpenedCheckpoint, pictures: int = 100, similar: int = 300) -> None:
        from export.demo.accuracy import held_out
        from export.demo.model import Stages
        from export.demo.reference import Reference, recipe_of

        assert checkpoint.folder is not None and checkpoint.weights is not None
        self.spec, self.weights = checkpoint.spec, checkpoint.weights
        recipe = recipe_of(checkpoint.family.name)
        self.reference: Reference = Reference(recipe, Stages(self.spec, self.weights.rules), Path(checkpoint.folder))
        self.cases: list[Case] = held_out(pictures, recipe.side)
        self.prompts = self._prompts(self.cases[:similar])
        self.expected = self.logits(self.weights)

    def score(self, weights: WeightProvider, task: bool = True) -> Score:
        """Accuracy (unless ``task`` is off) and similarity of other weights."""
        import torch

        found = self.logits(weights)
        accuracy = self._accuracy() if task else None
        cosine = torch.nn.functional.cosine_similarity(self.expected, found, dim=-1)
        wanted, given = self.expected.log_softmax(-1), found.log_softmax(-1)
        kl = (wanted.exp() * (wanted - given)).sum(-1)
        same = self.expected.argmax(-1) == found.argmax(-1)
        return Score(
            accuracy,
            float(cosine.mean()),
            float(cosine.min()),
            float(kl.mean()),
            float(same.double().mean()),
            float(kl.median()),
        )

    def logits(self, weights: WeightProvider) -> Tensor:
        """float64 (answer positions, vocabulary) over all prompts; the reference holds these weights afterwards."""
        import torch

        self._hold(weights)
        stages, found = self.reference.stages, []
        seen: dict[int, np.ndarray] = {}
        features = []
        with torch.no_grad():
            for prompt in self.prompts:
                for image in prompt.images:
                    key = id(image)
                    if key not in seen:
                        rows = stages.run(VISION, **tensors(image.vision))
                        rows = stages.run(CONNECTOR, rows, **tensors(image.connector))
                        seen[key] = rows.reshape(-1, rows.shape[-1]).numpy()
                    features.append(seen[key])
            calls = decoder_calls(self.spec, weights, self.prompts, self.reference.processor, features)
            for prompt, call in zip(self.prompts, calls, strict=True):
                tokens = prompt.layout.input_ids.shape[1]
                call["logit_positions"] = torch.arange(tokens - 1 - prompt.answer, tokens)
                found.append(stages.run(DECODER, **call)[0][0])
        return torch.cat(found).double()

    def _hold(self, weights: WeightProvider) -> None:
        stages = self.reference.stages
        stages.parameters = {
            stage: {name: weights.tensor(f"{stage}.{name}").float() for name, _ in module.named_parameters()}
            for stage, module in stages.modules.items()
        }

    def _accuracy(self) -> float:
        from export.demo.accuracy import score

        return score(self.cases, self.reference.answers([(case.picture, case.question.text) for case in self.cases])).share()

    def _prompts(self, cases: Sequence[Case]) -> list[Prompt]:
        samples = [
            Sample((case.picture,), (Message("user", case.question.text, (0,)), Message("assistant", case.question.answer)))
            for case in cases
        ]
        return list(prepare(samples, self.reference.processor, self.reference.tokenizer))


class HalfWeights:
    """A WeightProvider of every parameter rounded to float16."""

    def __init__(self, weights: WeightProvider) -> None:
        self.weights = weights

    def shape(self, target: str) -> tuple[int, ...]:
        return self.weights.shape(target)

    def tensor(self, target: str) -> Tensor:
        return self.weights.tensor(target).half().float()

    def rows(self, target: str, start: int, stop: int | None) -> Tensor:
        return self.weights.rows(target, start, stop).half().float()
