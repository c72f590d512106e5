"""How right an answer is where the truth is given: four scores from 0 to 1, as the field defines them.

- ``exact``: the answer is one of those given, letter case, spaces and a last full stop aside.
- ``contains``: one of those given stands in the answer, under the same rule, as whole words where it is made of letters.
- ``anls``: average normalised Levenshtein similarity, Biten et al. 2019, "Scene Text Visual Question Answering" (ICCV),
  equation 1: the best of 1 - distance / longer length over the answers given, 0 below one half; case is ignored.
- ``vqa``: the accuracy of Antol et al. 2015, "VQA: Visual Question Answering", as GT-Vision-Lab/VQA counts it
  (PythonEvaluationTools/vqaEvaluation/vqaEval.py): for each person, min(1, others who said the same / 3), averaged. It
  speaks of ten people's answers; below four there are no three others, and the score is left out. Its processing of
  punctuation, articles and numbers is followed; of its list of contractions only the apostrophe is, by leaving it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NAMES = ("exact", "contains", "anls", "vqa")

ANLS_LEAST = 0.5
"""Similarities below this count as 0 (Biten et al. 2019)."""

VQA_OTHERS = 3
"""As many others must have said the same for a whole point (Antol et al. 2015)."""

NUMBERS = dict(zip(("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
                   ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"), strict=True))  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})
MARKS = re.compile(r"""[;/\[\]"{}()=+\\_\-<>@`?!]""")
POINT = re.compile(r"\.(?!\d)")
COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")


def scores(answer: str, truth: Sequence[str]) -> dict[str, float]:
    """The scores of one answer by name; empty where no truth is given, without ``vqa`` below four people's answers."""
    if not truth:
        return {}
    said, right = _plain(answer), [_plain(one) for one in truth]
    figures = {
        "exact": float(said in right),
        "contains": float(any(_stands_in(one, said) for one in right)),
        "anls": anls(answer, truth),
    }
    if len(truth) > VQA_OTHERS:
        figures["vqa"] = vqa(answer, truth)
    return figures


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every score over the answers that have it."""
    return {
        name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows)
        for name in NAMES
        if any(name in row for row in rows)
    }


def anls(answer: str, truth: Sequence[str]) -> float:
    """The best normalised Levenshtein similarity over ``truth``, 0 below `ANLS_LEAST`."""
    return max(_similarity(" ".join(answer.lower().split()), " ".join(one.lower().split())) for one in truth)


def _similarity(answer: str, truth: str) -> float:
    longer = max(len(answer), len(truth))
    near = 1 - levenshtein(answer, truth) / longer if longer else 1.0
    return near if near >= ANLS_LEAST else 0.0


def levenshtein(first: str, second: str) -> int:
    """Letters to put in, take out or change."""
    before = list(range(len(second) + 1))
    for row, letter in enumerate(first, 1):
        now = [row]
        for column, other in enumerate(second, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != other)))
        before = now
    return before[-1]


def vqa(answer: str, people: Sequence[str]) -> float:
    """The mean over people of min(1, others who said the same / 3); at least four people."""
    said, given = _processed(answer), [_processed(one) for one in people]
    same = sum(one == said for one in given)
    return sum(min(1.0, (same - (one == said)) / VQA_OTHERS) for one in given) / len(given)


def _processed(text: str) -> str:
    """An answer as the VQA evaluation compares it."""
    plain = COMMA_IN_NUMBER.sub("", text.replace("\n", " ").replace("\t", " ").strip().lower())
    plain = POINT.sub("", MARKS.sub(" ", plain).replace(",", " ").replace("'", ""))
    words = [NUMBERS.get(word, word) for word in plain.split()]
    return " ".join(word for word in words if word not in ARTICLES)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".。")


def _stands_in(truth: str, answer: str) -> bool:
    """Whether the truth stands in the answer, and not inside a longer word where words have letters and spaces."""
    if not truth:
        return False
    if truth.isascii():
        return re.search(rf"(?<![a-z0-9]){re.escape(truth)}(?![a-z0-9])", answer) is not None
    return truth in answer
