"""Train the demo checkpoint of a family on drawn pictures.

    python -m export.demo.train --model minicpm-v -o export/demo/checkpoints/minicpm-v

What is trained are the published tensors. Beside the answers, throw-away heads learn what lies under each patch and in
each row of image features, which gives the vision tower and the connector a signal long before the decoder can use
them. Towards the end, matrices pass through int4 rounding with straight-through gradients in most steps.
Equal seed, steps and thread count give equal weights.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.demo.accuracy import HELD_OUT_SEED, Case, held_out, score
from export.demo.batches import Sized, own_cells, probe_rows, sizes_of_one_shape
from export.demo.dialogues import UNLABELLED, Dialogue, Tails, heads, stacked, tails, wholes
from export.demo.model import Cache, MemorySource, Stages, initial_tensors, selected
from export.demo.optimiser import Muon
from export.demo.pictures import COLOURS, KINDS, Scene, draw, sample_scene, sample_size
from export.demo.published import write_checkpoint
from export.demo.quantisation import ALL_ROLES, LANGUAGE_ROLES, matrices, mlc_rounded, straight_through
from export.demo.questions import KINDS as QUESTION_KINDS
from export.demo.questions import Question, ask, sample_questions, worn
from export.demo.recipes.base import Recipe, Tensors
from export.demo.reference import Reference, recipe_of
from export.demo.routing import by_phase, gate_inputs, last_labels
from export.demo.transfer import start_from
from export.registry import families
from runtime_py import tokenizer as tokenizers
from runtime_py.errors import UsageError
from runtime_py.preprocess.base import ImageInputs

log = logging.getLogger("export.demo.train")

DIALOGUES, GROUPS = 4, 4
"""Dialogues per picture; batches of similar length that a step's dialogues are sorted into."""
DESCRIPTIONS = 0.25
"""Share of questions that ask for a description once answers count in full."""
DIGITS_DRAWN = 0.5
"""Share of training scenes with a digit: ten of them take longer to learn than four shapes."""
COLOUR_NAMES = tuple(COLOURS)
CHECKPOINTS = Path(__file__).parent / "checkpoints"
EDGES = ("embed_tokens.table.weight", "decoder.head.weight")


@dataclass(frozen=True)
class Plan:
    """Sizes and rates of one training run: first learn to see, by the probes alone, then to answer."""

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
        long answers count less, which teaches first words first."""
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


class Probes(nn.Module):
    """Throw-away linear heads: kind and colour of what lies under each patch (from the vision features), and the same with
    the place itself for each row of image features, so that a row can be found and read on its own."""

    def __init__(self, vision_width: int, row_width: int, rows: int) -> None:
        super().__init__()
        things = len(KINDS) + 1 + len(COLOUR_NAMES) + 1
        self.patches = nn.Linear(vision_width, things)
        self.rows = nn.Linear(row_width, things + rows)

    def forward(self, features: Tensor, rows: Tensor, patches: Tensor, held: Tensor, cells: Tensor) -> dict[str, Tensor]:
        """Losses against (pictures, places, 2) kind and colour targets and the cell (places,) that each row stands for, and
        the share of things whose kind is right."""
        scores = self.rows(rows)
        places = scores[..., len(KINDS) + len(COLOUR_NAMES) + 2 :].transpose(1, 2)
        own = cells.expand(rows.shape[0], -1)
        right = scores[..., : len(KINDS) + 1].argmax(-1) == held[..., 0]
        return {
            "patches": self._loss(self.patches(features), patches),
            "rows": self._loss(scores, held),
            "places": F.cross_entropy(places, own),
            "kinds right": right[held[..., 0] > 0].float().mean(),
        }

    @staticmethod
    def _loss(scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over the places that hold something plus mean over the others, for kinds and for colours."""
        split, end = len(KINDS) + 1, len(KINDS) + len(COLOUR_NAMES) + 2
        held = targets[..., 0] > 0
        kinds = F.cross_entropy(scores[..., :split].transpose(1, 2), targets[..., 0], reduction="none")
        colours = F.cross_entropy(scores[..., split:end].transpose(1, 2), targets[..., 1], reduction="none")
        both = kinds + colours
        return 0.5 * (both[held].mean() + both[~held].mean())


def probe_targets(scene: Scene, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Kind and colour (0: nothing) in each place of a ``grid`` of rows and columns: int64 (places, 2).

    A thing is in the place of its middle and in every place whose own middle it covers.
    """
    rows, columns = grid
    found = np.zeros((rows, columns, 2), dtype=np.int64)
    middle_y, middle_x = (np.arange(rows)[:, None] + 0.5) / rows, (np.arange(columns)[None] + 0.5) / columns
    for item in scene.items:
        target = (KINDS.index(item.kind) + 1, COLOUR_NAMES.index(item.colour) + 1)
        reach_x, reach_y = (item.radius * min(size) / length for length in size)
        found[(np.abs(middle_x - item.x) < reach_x) & (np.abs(middle_y - item.y) < reach_y)] = target
        found[int(item.y * rows), int(item.x * columns)] = target
    return found.reshape(-1, 2)


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
        inputs = [piece for found in pieces for piece in found]
        features, rows = self.stages.see(stacked(inputs, "vision"), stacked(inputs, "connector"))
        losses = self._probed(scenes, inputs[0], features, rows)
        if not asked:
            return {**losses, "answers": torch.zeros(())}
        dialogues = [d for (scene, _), found in zip(scenes, pieces, strict=True) for d in self._dialogues(scene, found, rng)]
        return {**losses, "answers": self._answer_loss(dialogues, rows) + 0.03 * self._talk(rng)}

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

    def _answer_loss(self, dialogues: list[Dialogue], rows: Tensor) -> Tensor:
        if self.stages.routed:
            rows = rows.reshape(len(dialogues) // DIALOGUES, -1, rows.shape[-1])
            order = sorted(range(len(dialogues)), key=lambda i: (len(dialogues[i].ids), i))
            parts = [part.tolist() for part in np.array_split(np.array(order), GROUPS)]
            losses = [self._routed([dialogues[i] for i in p], rows[[i // DIALOGUES for i in p]]) for p in parts]
            return torch.stack(losses).sum() / len(dialogues)
        head = heads(dialogues[::DIALOGUES])
        embeds = self.stages.embed(head.ids).masked_scatter(head.image_rows[..., None], rows)
        _, cache = self.stages.decode(embeds, head.extras, None, torch.zeros(0, dtype=torch.int64))
        pictures = [number // DIALOGUES for number in range(len(dialogues))]
        losses = [self._answered(tail, cache) for tail in tails(dialogues, pictures, GROUPS)]
        return torch.stack(losses).sum() / len(dialogues)

    def _dialogues(self, scene: Scene, pieces: list[ImageInputs], rng: np.random.Generator) -> list[Dialogue]:
        found = []
        describe = DESCRIPTIONS if self.plan.in_full(self.done) else 0.0
        for question in sample_questions(scene, DIALOGUES, rng, describe=describe):
            turns = [question]
            if rng.random() < 0.2:
                turns += sample_questions(scene, 1, rng)
            turns = [Question(t.kind, t.language, worn(t.text, rng), t.answer) for t in turns]
            found.append(self.reference.writer.write(turns, pieces))
        return found

    def _talk(self, rng: np.random.Generator) -> Tensor:
        """The answers that need no picture, without one."""
        scene = sample_scene(rng)
        turns = [ask(scene, "talk", language, rng) for language in ("en", "zh")]
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
        return _summed_losses(logits, tail.labels, self.plan.in_full(self.done))

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
        return _summed_losses(logits, last_labels(dialogues), self.plan.in_full(self.done))

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


def _summed_losses(logits: Tensor, labels: Tensor, in_full: bool) -> Tensor:
    """Token losses summed over dialogues, those of a dialogue over the root of their number unless ``in_full``."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, reduction="none")
    lengths = (labels != UNLABELLED).sum(1).clamp(min=1)
    each = losses.view(labels.shape).sum(1)
    return (each if in_full else each / lengths.sqrt()).sum() / 1.5


def train(
    recipe: Recipe, plan: Plan, output: Path, state: Path | None, report_every: int, held_out_pictures: int = 48
) -> None:
    """Train to the end of the plan, logging held-out accuracy, and write the checkpoint to ``output``."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in recipe.side_files().items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        trainer = Trainer(recipe, plan, Path(folder))
    if state is not None and state.is_file():
        trainer.restore(torch.load(state, weights_only=True))
        log.info("resumed after step %d", trainer.done)
    cases = held_out(held_out_pictures, recipe.side, seed=HELD_OUT_SEED + 1, digits=recipe.digits)
    started, first = time.monotonic(), trainer.done
    sums: dict[str, float] = {}
    while trainer.done < plan.steps:
        for name, value in trainer.step().items():
            sums[name] = 0.95 * sums.get(name, value) + 0.05 * value
        if trainer.done % 25 == 0:
            pace = (time.monotonic() - started) / (trainer.done - first)
            losses = " ".join(f"{name} {value:.3f}" for name, value in sums.items())
            log.info("step %d of %d, %.2f s each, %s", trainer.done, plan.steps, pace, losses)
        if trainer.done % report_every == 0 or trainer.done == plan.steps:
            if trainer.done > plan.seeing:
                _report(trainer, cases)
                log.info("wrote %s, %d bytes", output, write_checkpoint(output, recipe, trainer.tensors))
            if state is not None:
                partial = state.with_suffix(".partial")
                torch.save(trainer.state(), partial)
                partial.replace(state)


def _report(trainer: Trainer, cases: list[Case]) -> None:
    """Log held-out accuracy, plain and with int4 weights."""
    asked = [(case.picture, case.question.text) for case in cases]
    parts = []
    for name, rounded in (("plain", frozenset()), ("int4", trainer.language), ("int4 everywhere", trainer.everything)):
        with torch.no_grad():
            trainer.stages.derive(trainer.tensors, rounded, mlc_rounded)
        result = score(cases, trainer.reference.answers(asked))
        kinds = " ".join(f"{kind} {result.share([kind]):.2f}" for kind in QUESTION_KINDS)
        parts.append(f"{name}: {result.share():.3f} ({kinds})")
    log.info("step %d held out, %s", trainer.done, "; ".join(parts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(prog="python -m export.demo.train", description="Train a demo checkpoint.")
    parser.add_argument("--model", default="minicpm-v", help="family name (default minicpm-v)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seeing", type=int, help=f"steps of seeing alone (default: the recipe's, else {Plan.seeing})")
    parser.add_argument("--answering", type=int, help=f"steps after that (default: the recipe's, else {Plan.answering})")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--state", type=Path, help="file to keep the run's state in, and to go on from")
    parser.add_argument("--report-every", type=int, default=150, help="steps between accuracy reports (default 150)")
    options = parser.parse_args(arguments)
    if options.seed in (HELD_OUT_SEED, HELD_OUT_SEED + 1):
        raise UsageError(f"seed {options.seed} draws the held-out pictures", "any other seed", "choose another --seed")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    recipe = recipe_of(options.model)
    asked = {name: getattr(options, name) for name in ("seeing", "answering") if getattr(options, name) is not None}
    plan = replace(Plan(seed=options.seed), **{**recipe.plan, **asked})
    train(recipe, plan, options.output, options.state, options.report_every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
