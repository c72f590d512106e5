"""Scores on a demo checkpoint's own task: held-out questions, answers fed as the model says them.

One pass gives both figures. Logits are compared where the right answer is fed, so that similarity covers every answer
token; and a greedy answer is right exactly when the right token comes first at each of these positions. Questions about one
picture share its prefill, and pictures of one shape run together.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.evaluation.score import Positions, Score, compared
from export.quantisation.codes import WeightProvider
from runtime_py.contracts import CONNECTOR, VISION
from runtime_py.errors import EdgeproofError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from export.checkpoint.opened import OpenedCheckpoint
    from export.demo.accuracy import Case
    from export.demo.dialogues import Dialogue
    from export.demo.recipes.base import Recipe
    from export.demo.reference import Reference
    from runtime_py.preprocess.base import ImageInputs

PICTURES, DIALOGUES = 16, 48
"""Pictures and questions that run together at most."""

REPORTED, SEARCHED, CHECKED = 20_240_201, 20_240_203, 20_240_204
"""Seeds of held-out pictures: of every accuracy table (export.demo.accuracy.HELD_OUT_SEED), of a search for bits, and of the
check that ends a calibration; what was chosen on some pictures is reported on others."""

REMEMBERED = 3
"""Sets of vision and connector weights whose image rows are kept."""


def demo_recipe(checkpoint: OpenedCheckpoint) -> Recipe:
    """The recipe of the demo task that a checkpoint was trained on, recognised by its sizes.

    Raises:
        UsageError: the checkpoint is no demo of its family.
    """
    import torch

    from export.demo.model import MemorySource
    from export.demo.reference import recipe_of

    family = checkpoint.family
    try:
        recipe = recipe_of(family.name)
        known = MemorySource({name: torch.empty(shape) for name, shape in recipe.known.items()})
        same = family.spec(recipe.config, known) == checkpoint.spec
    except (ImportError, EdgeproofError):
        same = False
    if not same:
        raise UsageError(
            f"{checkpoint.id} was not trained on the demo's task", "a demo checkpoint, whose questions have known answers",
            "use --weights demo, or ask for similarity alone (cosine, kl)",
        )  # fmt: skip
    return recipe


def is_demo(checkpoint: OpenedCheckpoint) -> bool:
    """Whether the demo's questions mean anything to a checkpoint."""
    try:
        demo_recipe(checkpoint)
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class _Batch:
    """Questions about pictures of one shape.

    Attributes:
        images: inputs of the pictures, all pieces of a picture one after another.
        picture: of every question, its place among the pictures.
        cases: places of the questions in the evaluation's list.
    """

    pictures: int
    images: list[ImageInputs]
    dialogues: list[Dialogue]
    picture: list[int]
    cases: list[int]


class DemoEvaluation:
    """Held-out questions of a demo checkpoint, and its full-precision logits to compare with.

    Args:
        pictures: held-out pictures; each is asked several questions.
        seed: of the pictures.

    Raises:
        UsageError: the checkpoint is no demo.
    """

    has_task = True
    source = "demo questions"

    def __init__(self, checkpoint: OpenedCheckpoint, pictures: int = 100, seed: int = REPORTED) -> None:
        from export.demo.accuracy import held_out
        from export.demo.model import Stages
        from export.demo.questions import TASKS
        from export.demo.reference import Reference

        recipe = demo_recipe(checkpoint)
        assert checkpoint.folder is not None and checkpoint.weights is not None
        self.weights: WeightProvider = checkpoint.weights
        self.reference: Reference = Reference(
            recipe, Stages(checkpoint.spec, checkpoint.weights.rules), Path(checkpoint.folder)
        )
        self.count = pictures
        self.cases: list[Case] = held_out(pictures, recipe.side, seed, digits=recipe.digits)
        self._in_task = [case.question.kind in TASKS for case in self.cases]
        self._batches = self._arranged()
        self._rows: OrderedDict[str, list[Tensor]] = OrderedDict()
        self.expected, self._known_right = self._run(self.weights)

    def score(self, weights: WeightProvider) -> Score:
        """Figures of the weights over all questions: task accuracy, answers changed, distance of the logits."""
        positions, right = self._run(weights)
        asked = [(ok, before) for ok, before, counts in zip(right, self._known_right, self._in_task, strict=True) if counts]
        accuracy = sum(ok for ok, _ in asked) / len(asked)
        answers = "".join(str(int(ok)) for ok, _ in asked)
        return compared(self.expected, positions).score(accuracy, sum(ok != before for ok, before in asked), answers)

    def positions(self, weights: WeightProvider) -> Positions:
        """How far the weights' logits are from full precision at every answer position."""
        return compared(self.expected, self._run(weights)[0])

    def _run(self, weights: WeightProvider) -> tuple[Tensor, list[bool]]:
        """Logits (answer positions, vocabulary), and whether each question is answered right."""
        import torch

        self._hold(weights)
        right = [False] * len(self.cases)
        kept_logits = []
        with torch.no_grad():
            for batch, rows in zip(self._batches, self._image_rows(), strict=True):
                for logits, labels, members in self._answers(batch, rows):
                    kept = labels >= 0
                    ok = (logits.argmax(-1) == labels) | ~kept
                    for member, every in zip(members, ok.all(1).tolist(), strict=True):
                        right[batch.cases[member]] = every
                    kept_logits.append(logits[kept])
        return torch.cat(kept_logits), right

    def _answers(self, batch: _Batch, rows: Tensor) -> list[tuple[Tensor, Tensor, list[int]]]:
        """Logits and labels (questions, positions), and which of the batch's questions they are."""
        import torch

        from export.demo.dialogues import heads, tails, wholes
        from export.demo.model import selected
        from export.demo.routing import by_phase, gate_inputs, last_labels

        stages, dialogues, answers = self.reference.stages, batch.dialogues, []
        order = sorted(range(len(dialogues)), key=lambda i: (len(dialogues[i].ids), i))
        parts = [order[start : start + DIALOGUES] for start in range(0, len(order), DIALOGUES)]
        if stages.routed:
            rows = rows.reshape(batch.pictures, -1, rows.shape[-1])
            for part in parts:
                members = [dialogues[i] for i in part]
                whole = wholes(members)
                raw = stages.embed(whole.ids)
                merged = raw.masked_scatter(whole.image_rows[..., None], rows[[batch.picture[i] for i in part]])
                tokens = raw.shape[1]
                gates = by_phase(members, gate_inputs(members, merged, raw), tokens)
                logits, _ = stages.decode(merged, whole.extras | {"gate_input": gates}, None, torch.arange(tokens))
                answers.append((logits, last_labels(members), part))
            return answers
        first = {picture: dialogues[i] for i, picture in reversed(list(enumerate(batch.picture)))}
        head = heads([first[picture] for picture in range(batch.pictures)])
        embeds = stages.embed(head.ids).masked_scatter(head.image_rows[..., None], rows)
        _, cache = stages.decode(embeds, head.extras, None, torch.arange(0))
        for part in parts:
            (tail,) = tails([dialogues[i] for i in part], [batch.picture[i] for i in part])
            everywhere = torch.arange(tail.ids.shape[1])
            logits, _ = stages.decode(stages.embed(tail.ids), tail.extras, selected(cache, tail.picture), everywhere)
            answers.append((logits, tail.labels, part))
        return answers

    def _image_rows(self) -> list[Tensor]:
        """Image rows of every batch with the weights that the reference holds, kept for as long as those stay."""
        from export.demo.dialogues import stacked

        digest = hashlib.sha256()
        for stage in (VISION, CONNECTOR):
            for name, value in self.reference.stages.parameters[stage].items():
                digest.update(name.encode() + value.contiguous().numpy().tobytes())
        key = digest.hexdigest()
        if key not in self._rows:
            self._rows[key] = [
                self.reference.stages.see(stacked(batch.images, "vision"), stacked(batch.images, "connector"))[1]
                for batch in self._batches
            ]
            while len(self._rows) > REMEMBERED:
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def _hold(self, weights: WeightProvider) -> None:
        stages = self.reference.stages
        stages.parameters = {
            stage: {name: weights.tensor(f"{stage}.{name}").float() for name, _ in module.named_parameters()}
            for stage, module in stages.modules.items()
        }

    def _arranged(self) -> list[_Batch]:
        """The questions by the shape of their pictures' inputs and of what stands in front of them."""
        from export.demo.dialogues import head_length

        seen: dict[int, list[ImageInputs]] = {}
        groups: dict[tuple[int, str], dict[int, list[int]]] = {}
        dialogues: list[Dialogue] = []
        for number, case in enumerate(self.cases):
            key = id(case.picture)
            if key not in seen:
                seen[key] = self.reference.processor.images([case.picture])
            dialogue = self.reference.writer.write([case.question], seen[key])
            dialogues.append(dialogue)
            shapes = str([(name, value.shape) for piece in seen[key] for name, value in piece.vision.items()])
            groups.setdefault((head_length(dialogue), shapes), {}).setdefault(key, []).append(number)
        batches = []
        for pictures in groups.values():
            keys = list(pictures)
            for start in range(0, len(keys), PICTURES):
                batches.append(_batch(keys[start : start + PICTURES], pictures, seen, dialogues))
        return batches


def _batch(
    keys: Sequence[int], cases: dict[int, list[int]], seen: dict[int, list[ImageInputs]], dialogues: Sequence[Dialogue]
) -> _Batch:
    numbers = [(place, number) for place, key in enumerate(keys) for number in cases[key]]
    return _Batch(
        len(keys),
        [piece for key in keys for piece in seen[key]],
        [dialogues[number] for _, number in numbers],
        [place for place, _ in numbers],
        [number for _, number in numbers],
    )
