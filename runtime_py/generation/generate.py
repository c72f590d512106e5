"""What ends an answer and how its tokens are chosen: a stop token, a limit or the end of the context ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from typing import Any

import numpy as np

from runtime_py.errors import PackageError, UsageError
from runtime_py.files.json_file import shortened
from runtime_py.generation.sampler import Sampler, Sampling


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # a stop token
    LENGTH = "length"  # max_new_tokens
    CONTEXT = "context"  # no cache position left
    STOPPED = "stopped"  # the caller ended it


@dataclass(frozen=True)
class Settings:
    """One answer's limits and sampling; `settings_of` reads a package's defaults.

    Attributes:
        prompt_lookup: tokens guessed from the prompt in one decoder call at most (`runtime_py.generation.prompt_lookup`); 0
            guesses none. Answers that are drawn (a temperature above 0) guess none, whatever is set: between two tokens that
            are about as likely the last bits would decide.
    """

    stop_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    prompt_lookup: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"{self.max_new_tokens} new tokens", "at least 1", "raise max_new_tokens")
        if self.prompt_lookup < 0:
            raise UsageError(f"{self.prompt_lookup} guessed tokens", "0 or more", "correct prompt_lookup")


WHOLE = ("max_new_tokens", "top_k", "seed", "prompt_lookup")
REAL = ("temperature", "top_p", "repetition_penalty")


@dataclass(frozen=True)
class Overrides:
    """What a caller sets apart from the package's defaults; None keeps the default."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_ids: tuple[int, ...] | None = None
    prompt_lookup: int | None = None

    def __post_init__(self) -> None:
        for names, kind, wanted in ((WHOLE, Integral, "a whole number"), (REAL, Real, "a number")):
            for name in names:
                value = getattr(self, name)
                if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                    raise UsageError(f"{name} is {shortened(value)}", wanted, "correct the value, or leave it out")
        ids = self.stop_ids
        if ids is not None and not (isinstance(ids, tuple | list) and all(isinstance(i, Integral) for i in ids)):
            raise UsageError(f"stop_ids is {shortened(ids)}", "a tuple of token ids", "correct it, or leave it out")


def settings_of(generation: Mapping[str, Any], overrides: Overrides | None = None) -> Settings:
    """A manifest's ``generation`` object with a caller's overrides.

    Raises:
        PackageError: the manifest lacks a value; UsageError: a value is out of range.
    """
    if overrides is not None and not isinstance(overrides, Overrides):
        raise UsageError(f"overrides is {shortened(overrides)}", "runtime_py.Overrides", "construct one of the values")
    chosen = overrides or Overrides()

    def pick(name: str) -> Any:
        asked = getattr(chosen, name)
        return generation[name] if asked is None else asked

    try:
        sampling = Sampling(
            temperature=float(pick("temperature")),
            top_k=int(pick("top_k")),
            top_p=float(pick("top_p")),
            repetition_penalty=float(pick("repetition_penalty")),
            seed=chosen.seed,
        )
        return Settings(tuple(pick("stop_ids")), int(pick("max_new_tokens")), sampling, int(chosen.prompt_lookup or 0))
    except KeyError as error:
        raise PackageError(f"manifest.json: generation has no {error}", "every default", "export it again") from error


class Choosing:
    """One answer's tokens, chosen one at a time; ``ids`` and ``finish`` tell what happened so far.

    Stop tokens are not among the ids. A token needs feeding only while ``finish`` is None.

    Args:
        penalised: as `Sampler`'s: those of the prompt's layout.
    """

    def __init__(self, settings: Settings, penalised: np.ndarray | None = None) -> None:
        self.settings = settings
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._sampler = Sampler(settings.sampling, penalised)

    def choose(self, logits: np.ndarray) -> int | None:
        """The next token from (vocabulary,) logits; None when it ends the answer."""
        token = self._sampler.choose(logits, self.ids)
        if token in self.settings.stop_ids:
            self.finish = Finish.STOP
            return None
        self.ids.append(token)
        return token

    def check_limits(self, room: int) -> None:
        """End the answer if it is as long as it may be, or no cache position is left for its last token."""
        if len(self.ids) >= self.settings.max_new_tokens:
            self.finish = Finish.LENGTH
        elif room < 1:
            self.finish = Finish.CONTEXT
