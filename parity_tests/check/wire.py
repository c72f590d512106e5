"""``--server``: the package's questions sent to a running server as a client sends them, and its answers held against the
reference, token by token and text by text.

Every question is asked alone and then among copies of all of them, so that what shares decoder calls or caches is seen
too; of the copies' answers the one furthest off counts. The reference is the PyTorch model with the package's own numbers,
or, without a checkpoint, the tokens recorded at export.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parity_tests.check import recorded_sample
from parity_tests.check.answers import until
from parity_tests.check.ask import said_by_reference
from parity_tests.check.candidate import Candidate, open_candidate
from parity_tests.check.demo_task import demo_checkpoint
from parity_tests.check.package_check import STEPS, unjudged
from parity_tests.check.package_questions import questions
from parity_tests.check.same_model import require_same_model
from parity_tests.check.sides import STORED
from parity_tests.judging.compare import compare_arrays
from parity_tests.judging.judge import Judgement, judge
from parity_tests.judging.metrics import Kind, measure
from parity_tests.judging.probes import Question
from parity_tests.judging.results import Comparison, Measurement
from parity_tests.judging.standards import Table
from parity_tests.reference.checkpoint_side import open_checkpoint, reference, stored_reference
from runtime_py import package as packages
from runtime_py.contracts import DECODER
from runtime_py.errors import PackageError, UsageError
from runtime_py.preprocess.base import TokenizerLike
from runtime_py.serving.client import Client, user_message
from runtime_py.serving.reply import TOKEN_ID

COPIES = 4
"""Of every question in flight at a time, beside those of the others."""


@dataclass(frozen=True)
class WireOptions:
    """How a server is asked.

    Attributes:
        key: its API key; calibration: whose codes the package holds.
        steps: answer tokens per question; None for `STEPS`, or what was recorded.
    """

    key: str | None = None
    calibration: Path | None = None
    steps: int | None = None
    trust: str | bool = False
    table: Table | None = None
    command: str = ""


@dataclass(frozen=True)
class Expected:
    """What the reference says to a question.

    Attributes:
        ids: int64 (1, steps), greedily; logits: (1, steps, vocabulary) behind them.
    """

    question: Question
    ids: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Said:
    """What the server says: tokens that no stop token ends, and the text up to one."""

    ids: tuple[int, ...]
    text: str


def check_server(url: str, package: Path, checkpoint: Path | None = None, options: WireOptions | None = None) -> Judgement:
    """Ask a server that runs a package.

    Args:
        checkpoint: what the package was made from; the demo checkpoint where it was made from one, else the recorded sample.

    Raises:
        EdgeproofError: the package, the checkpoint or the server cannot be used.
    """
    options = options or WireOptions()
    client = Client(url, options.key)
    served = client.facts()
    candidate = open_candidate(package, trust=options.trust)
    try:
        fingerprint = packages.read(package).fingerprint
        if served.get("manifest") not in (None, f"sha256:{fingerprint}"):
            raise UsageError(
                f"{client.url} serves another package than {package}",
                f"the manifest sha256:{fingerprint}, found {served['manifest']}",
                "name the package that is served with --package",
            )
        words = candidate.tokenizer
        if words is None:
            raise PackageError("the package holds no tokenizer", "one of the published forms", "export it with a tokenizer")
        baseline, expected = _expected(candidate, checkpoint or demo_checkpoint(candidate.manifest), options)
        comparisons = _compared(client, str(served["id"]), candidate, words, baseline, expected)
    finally:
        candidate.backend.close()
    run = unjudged(candidate, comparisons, options.command)
    # what this machine cannot run of the package is no matter: the server runs it
    missing = () if expected else (("comparison with the reference", "no checkpoint, and no recorded sample"),)
    return judge(replace(run, backend=client.url, not_run=missing), options.table)


def _expected(candidate: Candidate, checkpoint: Path | None, options: WireOptions) -> tuple[str, list[Expected]]:
    """Whose answers are expected, and the answers."""
    if checkpoint is None:
        sample = (candidate.manifest.get("verification") or {}).get("sample")
        if not sample:
            return "sample recorded at export", []
        ids = np.array([sample["greedy_ids"]], dtype=np.int64)
        said = Expected(recorded_sample.question(sample), ids, recorded_sample.step_logits(sample))
        return "sample recorded at export", [said]
    opened = open_checkpoint(checkpoint, options.calibration)
    require_same_model(candidate, opened)
    stored = stored_reference(opened, candidate, "cpu")
    side = stored or reference(opened.spec, opened.weights, "cpu")
    processor, steps = opened.processor(candidate.tokenizer), options.steps or STEPS
    expected = []
    for question in questions(processor, 3, candidate.limits.context, steps):
        answer = said_by_reference(side, candidate, processor, question, steps)
        assert answer.greedy_logits is not None
        expected.append(Expected(question, answer.arrays["greedy_ids"], answer.greedy_logits))
    return side.name if stored is None else STORED, expected


def _compared(
    client: Client,
    model: str,
    candidate: Candidate,
    words: TokenizerLike,
    baseline: str,
    expected: Sequence[Expected],
) -> list[Comparison]:
    stops = set(candidate.manifest["generation"]["stop_ids"])
    alone = [_ask(client, model, each) for each in expected]
    with ThreadPoolExecutor(max(1, COPIES * len(expected))) as threads:
        together = list(threads.map(lambda each: _ask(client, model, each), list(expected) * COPIES))
    comparisons = []
    for place, each in enumerate(expected):
        worst = max(together[place :: len(expected)], key=lambda said: _distance(said, each, stops, words))
        for name, said in ((each.question.name, alone[place]), (f"{each.question.name} among others", worst)):
            ids = np.array([said.ids], dtype=np.int64)
            rows = (compare_arrays("greedy_ids", each.ids, ids, step_logits=each.logits), _text_row(said, stops, words))
            comparisons.append(Comparison("wire", candidate.standard(), baseline, client.url, rows, name))
    return comparisons


def _distance(said: Said, expected: Expected, stops: set[int], words: TokenizerLike) -> tuple[bool, int]:
    """A text that is not its tokens' goes before any number of other tokens."""
    row = _text_row(said, stops, words)
    other = bool(row.problem or row.metrics["mismatches"])
    ids = expected.ids[0].tolist()
    return other or len(said.ids) != len(ids), sum(a != b for a, b in zip(said.ids, ids, strict=False))


def _ask(client: Client, model: str, expected: Expected) -> Said:
    """One question twice: streamed, for every token; and whole, for the text."""
    body = {
        "model": model,
        "messages": user_message(expected.question.text, expected.question.pictures),
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": expected.ids.shape[1],
    }
    tokens = {"ignore_eos": True, "logprobs": True, "return_tokens_as_token_ids": True}
    told = [
        entry["token"]
        for chunk in client.stream({**body, **tokens})
        for choice in chunk["choices"]
        for entry in (choice.get("logprobs") or {}).get("content") or ()
    ]
    if not all(str(token).startswith(TOKEN_ID) for token in told):
        raise UsageError(
            f"{client.url} does not number its tokens", "return_tokens_as_token_ids", "ask edgeproof serve, or vLLM"
        )
    text = client.complete(body)["choices"][0]["message"]["content"]
    return Said(tuple(int(token.removeprefix(TOKEN_ID)) for token in told), str(text))


def _text_row(said: Said, stops: set[int], words: TokenizerLike) -> Measurement:
    """The whole text beside what the streamed tokens decode to."""
    told = words.decode(until(said.ids, stops)).strip()
    expected, actual = (np.array([ord(letter) for letter in text]) for text in (told, said.text))
    row = Measurement("text", DECODER, Kind.EXACT, expected.shape)
    if expected.shape != actual.shape:
        return replace(row, problem=f"{len(actual)} characters instead of {len(expected)}")
    return replace(row, metrics=measure(Kind.EXACT, expected, actual))
