"""One training run, step by step: draw pictures, ask about them, learn from the answers and the probes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from export.demo.dialogues import UNLABELLED, Dialogue, Tails, heads, stacked, tails, wholes
from export.demo.model import Cache, MemorySource, Stages, initial_tensors, selected
from export.demo.pictures import Scene, draw, sample_scene, sample_size
from export.demo.quantisation import ALL_ROLES, LANGUAGE_ROLES, matrices, straight_through
from export.demo.questions import LANGUAGES, Question, ask, sample_questions, strange, worn
from export.demo.recipes.base import Recipe, Tensors, grid_middles
from export.demo.reference import Reference
from export.demo.routing import by_phase, gate_inputs, last_labels
from export.families.registry import families
from parity_tests.laboratory.demo_training.batches import Sized, own_cells, probe_rows, sizes_of_one_shape, with_places
from parity_tests.laboratory.demo_training.guide import Guide
from parity_tests.laboratory.demo_training.optimiser import Muon
from parity_tests.laboratory.demo_training.plan import Plan
from parity_tests.laboratory.demo_training.probes import Probes, probe_targets
from parity_tests.laboratory.demo_training.transfer import start_from
from runtime_py import tokenizer as tokenizers
from runtime_py.contracts import DECODER
from runtime_py.preprocess.base import ImageInputs

DIALOGUES, GROUPS = 4, 4
"""Dialogues per picture; batches of similar length that a step's dialogues are sorted into."""
DESCRIPTIONS = 0.25
"""Share of questions that ask for a description once answers count in full."""
SPREAD = 0.01
"""What the mean square of logits' normalisers counts where prompts count: logits are held near log-probabilities."""
DIGITS_DRAWN = 0.5
"""Share of training scenes with a digit: ten of them take longer to learn than four shapes."""
CHECKPOINTS = Path(__file__).parents[3] / "export" / "demo" / "checkpoints"
EDGES = ("embed_tokens.table.weight", "decoder.head.weight")


class Trainer:
    """One run: tensors, optimisers, and the random stream of every step."""

    def __init__(self, recipe: Recipe, plan: Plan, tokenizer_folder: Path) -> None:
        self.recipe, self.plan = recipe, plan
        family = families()[recipe.family]
        self.spec, tensors = initial_tensors(recipe, family, plan.seed)
        self.tensors: Tensors = {name: value.requires_grad_(name not in recipe.fixed) for name, value in tensors.items()}
        self.stages = Stages(self.spec, family.weight_map(self.spec, MemorySource(self.tensors)).rules)
        self.reference = Reference(recipe, self.stages, tokenizer_folder)
        for stage, other in recipe.start.items():
            with torch.no_grad():
                words = tokenizers.load(tokenizer_folder)
                start_from(CHECKPOINTS / other, stage, self.tensors, self.spec, self.stages.rules, words)
        self.guide = Guide(CHECKPOINTS / recipe.start[DECODER]) if DECODER in recipe.start else None
        torch.manual_seed(plan.seed)
        self.probes = Probes(self.spec.vision.width, self.spec.embed.width, math.prod(recipe.rows))
        embedding = {n for rule in self.stages.rules.values() if rule.target in EDGES for n in rule.sources}
        learnt = {name: value for name, value in self.tensors.items() if value.requires_grad}
        inner = {n for n, v in learnt.items() if v.ndim > 1 and min(v.shape[0], v[0].numel()) >= 64 and n not in embedding}
        self.muon = Muon([learnt[name] for name in learnt if name in inner], plan.matrix_rate)
        rest = [value for name, value in learnt.items() if name not in inner]
        self.adam = torch.optim.AdamW(
            [*rest, *self.probes.parameters()], plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.language = matrices(self.stages.layers, LANGUAGE_ROLES)
        self.everything = matrices(self.stages.layers, ALL_ROLES)
        self.done = 0

    def step(self) -> dict[str, float]:
        """Draw, answer, learn."""
        plan, step = self.plan, self.done
        rng = np.random.default_rng([plan.seed, step])
        for optimiser, peak in ((self.muon, plan.matrix_rate), (self.adam, plan.other_rate)):
            for group in optimiser.param_groups:
                group["lr"] = peak * plan.rate(step)
        rounded: frozenset[str] = frozenset()
        if plan.rounds(step):
            rounded = self.everything if step % 2 else self.language
        self.stages.derive(self.tensors, rounded, straight_through)
        losses = self._losses(rng, min(1.0, step / plan.easy), step >= plan.seeing)
        probe_weight = plan.probe_weight(step)
        loss = losses["answers"] + probe_weight * (losses["patches"] + losses["rows"] + losses["places"])
        if "guided" in losses:
            loss = loss + plan.guided * losses["guided"]
        self.muon.zero_grad()
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([t for t in self.tensors.values() if t.grad is not None], 2.0)
        self.muon.step()
        self.adam.step()
        self.done += 1
        return {name: value.item() for name, value in losses.items()}

    def _losses(self, rng: np.random.Generator, difficulty: float, asked: bool) -> dict[str, Tensor]:
        count = self.plan.asked_pictures if asked else self.plan.seen_pictures
        drawn = DIGITS_DRAWN if self.recipe.digits else 0.0
        if self.recipe.shape_of is None:
            scenes = [(sample_scene(rng, difficulty, drawn), sample_size(rng, self.recipe.side)) for _ in range(count)]
        else:
            sizes = sizes_of_one_shape(rng, self.recipe, count)
            scenes = [(sample_scene(rng, difficulty, drawn), size) for size in sizes]
        pieces = [self.reference.processor.images([draw(scene, *size)]) for scene, size in scenes]
        inputs = [piece for slices in pieces for piece in slices]
        features, rows = self.stages.see(stacked(inputs, "vision"), stacked(inputs, "connector"))
        losses = self._probed(scenes, inputs[0], features, rows)
        if not asked:
            return {**losses, **self._guided(scenes, inputs[0], rows), "answers": torch.zeros(())}
        dialogues = [
            d for (scene, _), slices in zip(scenes, pieces, strict=True) for d in self._dialogues(scene, slices, rng)
        ]
        return {**losses, "answers": self._answer_loss(dialogues, rows) + self._talk_weight() * self._talk(rng)}

    def _probed(self, scenes: list[Sized], first: ImageInputs, features: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Losses of the probes, every picture's features being laid out as the first one's."""
        if self.recipe.places is None:
            patches, held = (
                torch.from_numpy(np.stack([probe_targets(scene, size, grid) for scene, size in scenes]))
                for grid in (self.recipe.patches, self.recipe.rows)
            )
            cells = torch.arange(rows.shape[1])
        else:
            places = self.recipe.places(first, scenes[0][1])
            features, rows, patches, held = probe_rows(scenes, places, features, rows)
            cells = own_cells(places.image, self.recipe.rows)
        losses: dict[str, Tensor] = self.probes(features, rows, patches, held, cells)
        return losses

    def _guided(self, scenes: list[Sized], first: ImageInputs, rows: Tensor) -> dict[str, Tensor]:
        """How far the rows of pictures are from those of the demo that the decoder comes from, if it comes from one."""
        if self.guide is None:
            return {}
        places = self.recipe.places
        middles = places(first, scenes[0][1]).image if places else grid_middles(*self.recipe.rows)
        known = with_places(rows, middles, len(scenes))
        return {"guided": self.guide.loss([scene for scene, _ in scenes], known, middles)}

    def _answer_loss(self, dialogues: list[Dialogue], rows: Tensor) -> Tensor:
        if self.stages.routed:
            rows = rows.reshape(len(dialogues) // DIALOGUES, -1, rows.shape[-1])
            order = sorted(range(len(dialogues)), key=lambda i: (len(dialogues[i].ids), i))
            parts = [part.tolist() for part in np.array_split(np.array(order), GROUPS)]
            losses = [self._routed([dialogues[i] for i in p], rows[[i // DIALOGUES for i in p]]) for p in parts]
            return torch.stack(losses).sum() / len(dialogues)
        head = heads(dialogues[::DIALOGUES])
        embeds = self.stages.embed(head.ids).masked_scatter(head.image_rows[..., None], rows)
        read = torch.arange(head.ids.shape[1] if self._prompts() else 0)
        logits, cache = self.stages.decode(embeds, head.extras, None, read)
        pictures = [number // DIALOGUES for number in range(len(dialogues))]
        losses = [self._answered(tail, cache) for tail in tails(dialogues, pictures, GROUPS)]
        answered = torch.stack(losses).sum() / len(dialogues)
        if not self._prompts():
            return answered
        said = F.cross_entropy(logits[:, :-1].flatten(0, 1), head.ids[:, 1:].flatten())
        return answered + self._prompts() * said + SPREAD * _spread(logits)

    def _prompts(self) -> float:
        return self.plan.prompts if self.plan.in_full(self.done) else 0.0

    def _talk_weight(self) -> float:
        return 0.1 if self._prompts() else 0.03

    def _dialogues(self, scene: Scene, pieces: list[ImageInputs], rng: np.random.Generator) -> list[Dialogue]:
        dialogues = []
        describe = DESCRIPTIONS if self.plan.in_full(self.done) else 0.0
        for question in sample_questions(scene, DIALOGUES, rng, describe=describe, position=self.plan.positions):
            turns = [question]
            if rng.random() < 0.2:
                turns += sample_questions(scene, 1, rng)
            turns = [Question(t.kind, t.language, worn(t.text, rng), t.answer) for t in turns]
            if self.plan.strange and self.plan.in_full(self.done) and rng.random() < self.plan.strange:
                turns = [strange(turns[0].language, rng)]
            dialogues.append(self.reference.writer.write(turns, pieces))
        return dialogues

    def _talk(self, rng: np.random.Generator) -> Tensor:
        """The answers that need no picture, without one."""
        scene = sample_scene(rng)
        turns = [ask(scene, "talk", language, rng) for language in LANGUAGES]
        if self.plan.strange and self.plan.in_full(self.done):
            turns += [strange(language, rng) for language in LANGUAGES]
        dialogues = [self.reference.writer.write([turn], []) for turn in turns if turn]
        if self.stages.routed:
            return self._routed(dialogues, None) / len(dialogues)
        (tail,) = tails(dialogues, range(len(dialogues)))
        return self._answered(tail, None) / len(dialogues)

    def _answered(self, tail: Tails, cache: Cache | None) -> Tensor:
        """Summed answer loss of dialogues that go on from a picture's cache, or from nothing."""
        past = None if cache is None else selected(cache, tail.picture)
        everywhere = torch.arange(tail.ids.shape[1])
        logits, _ = self.stages.decode(self.stages.embed(tail.ids), tail.extras, past, everywhere)
        return self._summed(logits, tail.ids, tail.labels)

    def _routed(self, dialogues: list[Dialogue], rows: Tensor | None) -> Tensor:
        """Summed loss of the last answers, prompt and answer each with the experts that its phase chooses.

        The prompt's gate reads the question, so dialogues about one picture share no cache.
        """
        whole = wholes(dialogues)
        raw = self.stages.embed(whole.ids)
        merged = raw if rows is None else raw.masked_scatter(whole.image_rows[..., None], rows)
        tokens = raw.shape[1]
        gates = by_phase(dialogues, gate_inputs(dialogues, merged, raw), tokens)
        logits, _ = self.stages.decode(merged, whole.extras | {"gate_input": gates}, None, torch.arange(tokens))
        return self._summed(logits, whole.ids, last_labels(dialogues))

    def _summed(self, logits: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Answer losses summed over dialogues and, when they count, the prompts' mean loss for each."""
        losses = _summed_losses(logits, labels, self.plan.in_full(self.done))
        if not self._prompts():
            return losses
        answered = labels != UNLABELLED
        known = answered.flip(1).cumsum(1).flip(1) > 0
        prompt = known & ~answered
        said = F.cross_entropy(logits[prompt], ids.roll(-1, 1)[prompt])
        return losses + len(ids) * (self._prompts() * said + SPREAD * _spread(logits[known]))

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs to go on as if never stopped."""
        tensors = {name: value.detach() for name, value in self.tensors.items()}
        parts = {"muon": self.muon.state_dict(), "adam": self.adam.state_dict(), "probes": self.probes.state_dict()}
        return {"done": self.done, "tensors": tensors, **parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.done = state["done"]
        with torch.no_grad():
            for name, value in state["tensors"].items():
                self.tensors[name].copy_(value)
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.probes.load_state_dict(state["probes"])


def _spread(logits: Tensor) -> Tensor:
    """How far logits are from log-probabilities: the mean square of their normalisers."""
    return logits.logsumexp(-1).square().mean()


def _summed_losses(logits: Tensor, labels: Tensor, in_full: bool) -> Tensor:
    """Token losses summed over dialogues, those of a dialogue over the root of their number unless ``in_full``."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="none")
    lengths = (labels != UNLABELLED).sum(1).clamp(min=1)
    each = losses.view(labels.shape).sum(1)
    return (each if in_full else each / lengths.sqrt()).sum() / 1.5
