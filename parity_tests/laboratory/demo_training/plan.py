"""How long, how fast and on what a demo checkpoint is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes and rates of one training run: first learn to see, by the probes alone, then to answer.

    Attributes:
        seeing, answering: steps of the first round without and with questions.
        seen_pictures, asked_pictures: pictures of a step without and with questions.
        seed: of starting values and of every step's pictures.
        matrix_rate, other_rate: peak learning rates of Muon and of AdamW.
        easy: steps over which scenes grow from two large things to the full range.
        warm: steps in which a round's rate rises.
        falling_share: part of the first round in which its rate falls.
        rounded_share: last part of each round's answering in which matrices are rounded.
        again, again_rate: steps of a second round, and its rate as a share of the first one's.
        whole: first step that counts every token of an answer alike.
        positions: share of questions that ask for a place: whose place of several is learnt last.
        guided: what nearness to the rows of the demo that a decoder comes from counts beside the probes, while seeing.
        prompts: what the mean loss of prompt tokens counts beside that of answers, from ``whole`` on: logits within
            a prompt are compared when a package is checked, so they should mean something in int4 too.
        strange: share of questions, from ``whole`` on, that mean nothing and are answered by what the model can do.
    """

    seeing: int = 800
    answering: int = 1000
    seen_pictures: int = 48
    asked_pictures: int = 24
    seed: int = 1
    matrix_rate: float = 6e-3
    other_rate: float = 2e-3
    easy: int = 150
    warm: int = 60
    falling_share: float = 0.45
    rounded_share: float = 0.4
    again: int = 0
    again_rate: float = 0.5
    whole: int = 0
    positions: float = 0.0
    guided: float = 3.0
    prompts: float = 0.0
    strange: float = 0.0

    @property
    def first(self) -> int:
        """Steps of the first round; ``again`` more follow at a share of its rate."""
        return self.seeing + self.answering

    @property
    def steps(self) -> int:
        return self.first + self.again

    def rate(self, step: int) -> float:
        """Learning rate as a share of its peak: in each round up within ``warm`` steps, level, then falling as a cosine."""
        if step < self.first:
            peak, began, length, falling = 1.0, 0, self.first, self.falling_share
        else:
            peak, began, length, falling = self.again_rate, self.first, self.again, 0.6
        left = (began + length - step) / (falling * length)
        fallen = 1.0 if left >= 1 else 0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * left))
        return peak * min(1.0, (step - began + 1) / self.warm) * fallen

    def in_full(self, step: int) -> bool:
        """Whether every token of an answer counts alike and descriptions are asked for often; in steps before ``whole``
        long answers count less, which teaches first words first.
        """
        return step >= self.whole

    def rounds(self, step: int) -> bool:
        """Whether a step rounds matrices: three of four in the last part of each round."""
        ending = self.first - self.rounded_share * self.answering < step < self.first
        ending = ending or step > self.steps - self.rounded_share * self.again
        return ending and step % 4 != 0

    def probe_weight(self, step: int) -> float:
        """What the probes' losses count beside the answers'."""
        if step >= self.first:
            return 0.5
        return max(0.3, 1.0 - max(step - self.seeing, 0) / (0.5 * self.answering + 1))
