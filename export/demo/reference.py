"""Greedy answers of the PyTorch modules, many questions at a time: for training logs and accuracy tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.checkpoint.recognised import recognise_checkpoint
from export.demo.dialogues import Dialogue, DialogueWriter, head_length, heads, stacked, tails, wholes
from export.demo.model import Cache, Stages, selected
from export.demo.quantisation import matrices
from export.demo.questions import Question
from export.demo.recipes.base import Recipe
from export.demo.routing import gate_inputs
from export.families.registry import families
from export.specs import ModelSpec
from runtime_py import tokenizer as tokenizers
from runtime_py.preprocess.base import ArrangesRows, ImageInputs, Layout, Processor, TokenizerLike

LONGEST_ANSWER = 48


def recipe_of(family: str) -> Recipe:
    """The recipe module of a family, export/demo/recipes/<name with underscores>.py."""
    module = family.replace("-", "_").replace(".", "_")
    recipe: Recipe = import_module(f"export.demo.recipes.{module}").RECIPE
    return recipe


def processor_of(family: str, spec: ModelSpec, tokenizer: TokenizerLike) -> Processor:
    """The family's processor, as the runtime makes it."""
    return families()[family].make_processor(spec, tokenizer)


class RememberingTokenizer:
    """A tokenizer that encodes every text once; training asks for the same few thousand texts over and over."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = list(self._tokenizer.encode(text))
        return list(self._known[text])

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_id(token)


class Reference:
    """A model that answers questions about pictures; ``stages`` holds derived parameters."""

    def __init__(self, recipe: Recipe, stages: Stages, folder: Path) -> None:
        self.recipe, self.stages = recipe, stages
        self.tokenizer = RememberingTokenizer(tokenizers.load(folder))
        self.stops = frozenset(stages.spec.generation["stop_ids"])
        self.processor = processor_of(recipe.family, stages.spec, self.tokenizer)
        if isinstance(self.processor, ArrangesRows):
            stages.arrange = self.processor.arrange
        stop = min(self.stops) if recipe.stop is None else self.tokenizer.token_id(recipe.stop)
        if stop is None or stop not in self.stops:
            raise ValueError(f"{recipe.stop!r} ({stop}) is none of the stop ids {sorted(self.stops)}")
        self.writer = DialogueWriter(self.processor, self.tokenizer, stop, recipe.before, recipe.lead)

    @classmethod
    def load(
        cls, folder: Path, roles: frozenset[str] = frozenset(), rounding: Callable[[Tensor], Tensor] | None = None
    ) -> Reference:
        """Open a demo checkpoint; matrices of ``roles`` pass through ``rounding``."""
        checkpoint = recognise_checkpoint(folder)
        source = checkpoint.open_source()
        spec = checkpoint.spec(source)
        stages = Stages(spec, checkpoint.family.weight_map(spec, source).rules)
        with torch.no_grad():
            stages.derive({name: source.read(name) for name in source.infos}, matrices(stages.layers, roles), rounding)
        return cls(recipe_of(checkpoint.family.name), stages, folder)

    def answer(self, picture: np.ndarray | None, text: str) -> str:
        """The answer to one question about a uint8 RGB (height, width, 3) picture, or about none."""
        return self.answers([(picture, text)])[0]

    @torch.no_grad()
    def answers(self, asked: Sequence[tuple[np.ndarray | None, str]], batch: int = 64) -> list[str]:
        """Greedy answers, in order; questions of equal length are decoded together."""
        seen: dict[int, list[ImageInputs]] = {}
        dialogues: list[Dialogue] = []
        for picture, text in asked:
            if id(picture) not in seen:
                seen[id(picture)] = [] if picture is None else self.processor.images([picture])
            dialogues.append(self.writer.write([Question("", "", text, "")], seen[id(picture)], answered=False))

        def shape(i: int) -> tuple[int, int, str]:
            pieces = str([(n, v.shape) for piece in seen[id(asked[i][0])] for n, v in piece.vision.items()])
            return head_length(dialogues[i]), len(dialogues[i].ids), pieces

        answers = [""] * len(asked)
        for _, group in groupby(sorted(range(len(asked)), key=shape), key=shape):
            members = list(group)
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                images = [piece for i in part for piece in seen[id(asked[i][0])]]
                for i, ids in zip(part, self._decoded([dialogues[i] for i in part], images), strict=True):
                    answers[i] = self.tokenizer.decode(ids)
        return answers

    def _decoded(self, dialogues: list[Dialogue], images: list[ImageInputs]) -> list[list[int]]:
        """Answer ids of equally long dialogues, all with a picture or all without."""
        last = torch.tensor([-1])
        cache: Cache | None = None
        rows = self.stages.see(stacked(images, "vision"), stacked(images, "connector"))[1] if images else None
        gate: Tensor | None = None
        if self.stages.routed:
            whole = wholes(dialogues)
            raw = self.stages.embed(whole.ids)
            merged = raw if rows is None else raw.masked_scatter(whole.image_rows[..., None], rows)
            prefill, gate = gate_inputs(dialogues, merged, raw)
            logits, cache = self.stages.decode(merged, whole.extras | {"gate_input": prefill}, None, last)
        else:
            (tail,) = tails(dialogues, range(len(dialogues)))
            if rows is not None:
                head = heads(dialogues)
                embeds = self.stages.embed(head.ids).masked_scatter(head.image_rows[..., None], rows)
                _, cache = self.stages.decode(embeds, head.extras, None, last)
            logits, cache = self.stages.decode(self.stages.embed(tail.ids), tail.extras, cache, last)
        answers: list[list[int]] = [[] for _ in dialogues]
        alive = list(range(len(dialogues)))
        for length in range(len(dialogues[0].ids), len(dialogues[0].ids) + LONGEST_ANSWER):
            chosen = logits[:, -1].argmax(-1)
            keep = [row for row in range(len(alive)) if int(chosen[row]) not in self.stops]
            alive = [alive[row] for row in keep]
            if not alive:
                break
            for row, dialogue in zip(keep, alive, strict=True):
                answers[dialogue].append(int(chosen[row]))
            extras = self._next_inputs([dialogues[i] for i in alive], length)
            if gate is not None:
                extras["gate_input"] = gate[alive]
            embeds = self.stages.embed(chosen[keep][:, None])
            logits, cache = self.stages.decode(embeds, extras, selected(cache, keep), last)
        return answers

    def _next_inputs(self, dialogues: list[Dialogue], length: int) -> dict[str, Tensor]:
        rows = [self.processor.next_inputs(Layout(d.ids[None], d.image_rows, d.extras, d.state), length) for d in dialogues]
        return {name: torch.from_numpy(np.concatenate([row[name] for row in rows], axis=-2)) for name in rows[0]}
