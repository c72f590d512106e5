"""How many held-out questions are answered right, per kind and language, by anything that answers.

python -m export.demo.accuracy --weights export/demo/checkpoints/minicpm-v --rounding q4f16_1
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.demo.pictures import draw, sample_scene, sample_size
from export.demo.questions import KINDS, LANGUAGES, TASKS, Question, ask
from runtime_py.command import console, flags
from runtime_py.command.dispatch import Command, execute
from runtime_py.command.parser import Parser

Answer = Callable[[np.ndarray, str], str]

HELD_OUT_SEED = 20_240_201
"""Training draws from seeds whose first word is the run's seed; this one is refused there."""


@dataclass(frozen=True)
class Case:
    """One held-out question about one uint8 RGB (height, width, 3) picture."""

    picture: np.ndarray
    question: Question


@dataclass(frozen=True)
class Result:
    """Right answers out of asked questions by (kind, language)."""

    right: dict[tuple[str, str], int]
    asked: dict[tuple[str, str], int]

    def share(self, kinds: Iterable[str] = TASKS, languages: Iterable[str] = LANGUAGES) -> float:
        """Fraction right over the named kinds and languages; 0.0 where nothing was asked."""
        keys = [key for key in self.asked if key[0] in set(kinds) and key[1] in set(languages)]
        asked = sum(self.asked[key] for key in keys)
        return sum(self.right[key] for key in keys) / asked if asked else 0.0

    def markdown(self) -> str:
        """A table with one row per kind and the five tasks together."""
        lines = ["| kind | English | Chinese | asked |", "|---|---|---|---|"]
        rows: list[tuple[str, tuple[str, ...]]] = [(kind, (kind,)) for kind in KINDS] + [("five tasks", TASKS)]
        for name, kinds in rows:
            asked = sum(self.asked.get((kind, language), 0) for kind in kinds for language in LANGUAGES)
            cells = [f"{100 * self.share(kinds, (language,)):.1f} %" for language in LANGUAGES]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} | {asked} |")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        rows = {f"{kind}/{language}": [self.right[kind, language], n] for (kind, language), n in self.asked.items()}
        return {"five_tasks": round(self.share(), 4), "right_of_asked": rows}


def held_out(
    pictures: int, side: int, seed: int = HELD_OUT_SEED, kinds: Sequence[str] = KINDS, digits: bool = True
) -> list[Case]:
    """Cases on pictures of all sizes; every picture is asked one question of each kind it allows, languages in turn."""
    cases: list[Case] = []
    for number in range(pictures):
        rng = np.random.default_rng([seed, number])
        scene = sample_scene(rng) if digits else sample_scene(rng, digits=0.0)
        picture = draw(scene, *sample_size(rng, side))
        for index, kind in enumerate(kinds):
            language = LANGUAGES[(number // 10 if kind == "talk" else number + index) % 2]
            question = ask(scene, kind, language, rng)
            if question is not None and (kind != "talk" or number % 10 == 0):
                cases.append(Case(picture, question))
    return cases


def score(cases: Sequence[Case], answers: Iterable[str]) -> Result:
    """Count exact answers (surrounding space aside)."""
    result = Result({}, {})
    for case, answer in zip(cases, answers, strict=True):
        key = (case.question.kind, case.question.language)
        result.asked[key] = result.asked.get(key, 0) + 1
        result.right[key] = result.right.get(key, 0) + (answer.strip() == case.question.answer)
    return result


def measure(answer: Answer, cases: Sequence[Case]) -> Result:
    """Ask every case, one after the other."""
    return score(cases, (answer(case.picture, case.question.text) for case in cases))


def parser(prog: str) -> Parser:
    """The flags."""
    from export.demo.quantisation import ALL_ROLES, LANGUAGE_ROLES

    made = Parser(prog, "Accuracy of a demo checkpoint in the PyTorch reference, plain or with weights rounded to int4.")
    made.add_argument("--weights", type=Path, required=True, metavar="DIR", help="demo checkpoint folder")
    made.add_argument("--grid", help="round weights on this grid of export.quantisation.grids, e.g. q4f16_1 or ort_int4_b32")
    made.add_argument(
        "--roles",
        default=",".join(sorted(LANGUAGE_ROLES)),
        help=f"roles of the matrices to round, from {', '.join(sorted(ALL_ROLES))} (default %(default)s)",
    )
    made.add_argument("--pictures", type=int, default=400, help="held-out pictures (default 400)")
    flags.json_result(made)
    flags.json_file(made)
    flags.talk(made)
    return made


def _run(options: argparse.Namespace) -> int:
    from export.demo.quantisation import on_grid
    from export.demo.reference import Reference

    roles = frozenset(options.roles.split(",")) if options.grid else frozenset()
    reference = Reference.load(options.weights, roles, on_grid(options.grid) if options.grid else None)
    cases = held_out(options.pictures, reference.recipe.side, digits=reference.recipe.digits)
    result = score(cases, reference.answers([(case.picture, case.question.text) for case in cases]))
    if options.json:
        console.out_json(result.to_json())
    else:
        console.out(result.markdown())
    if options.json_file:
        options.json_file.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    return 0


COMMAND = Command(parser, _run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    return execute(COMMAND, "python -m export.demo.accuracy", arguments)


if __name__ == "__main__":
    sys.exit(main())
